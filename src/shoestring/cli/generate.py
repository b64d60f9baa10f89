"""`shoestring generate`: any model goes on from prompts, or answers messages, streamed."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from shoestring.base import open_model
from shoestring.base.drafting import check_drafter, check_made, open_drafter, open_made
from shoestring.base.writer import Writer
from shoestring.cli.arguments import TYPES_HELP, Arguments, dtype_named
from shoestring.cli.cache_flags import add_cache_flags, take_cache
from shoestring.cli.denoised import add_denoise_flags, check_denoise, fill_in, take_denoise
from shoestring.cli.expert_flags import add_expert_flags, take_experts
from shoestring.cli.prompts import Prompt, argument, chats_of, prompt_of, question, schema_of, texts_of
from shoestring.cli.samples import WORDS, sum_up, written
from shoestring.cli.set_parts import answer_parts, check_parts, set_prompt_of
from shoestring.config import build
from shoestring.decode import Engine, Request, Sampling, Stop
from shoestring.decode.acceptance import Acceptance
from shoestring.decode.cache_budget import CacheConfig
from shoestring.decode.engine import ROWS
from shoestring.decode.expert_store import put_experts_away
from shoestring.decode.pays import Pays
from shoestring.decode.sampling import Constraint
from shoestring.decode.supplied import WHAT, needs, supplied
from shoestring.errors import UsageError
from shoestring.method import find
from shoestring.train.adapters_beside import several_adapters
from shoestring.tune.merging import merge_adapters
from shoestring.tune.several import Several

ADAPTER = "adapter"
"""What the one that a command names is called."""


def run(words: Sequence[str]) -> int:
    given = len(words)
    cache, words = take_cache(words)
    cached = len(words) < given
    kept, words = take_experts(words)
    denoise, words = take_denoise(words)
    found = _arguments().read(words, mixed=True)
    flags = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    named = {name: "--" + name.replace("_", "-") for name in flags}
    sampling = build(Sampling, {name: getattr(found, name) for name in flags}, named.get)
    if found.samples > 1 and sampling.temperature == 0:
        raise UsageError(
            f"--samples {found.samples} at --temperature 0 is one text {found.samples} times: give one of them"
        )
    check_drafter(found.drafter, found.draft)
    _check_acceptance(found)
    check_made("mixture", found.mixture, found.datastore, "--datastore")
    check_made("depth", found.depth, found.routers, "--routers")
    chats = chats_of(found)
    texts = [] if chats else texts_of(found.prompts, found.file)
    if found.part:
        check_parts(found, texts, bool(chats) or cached or denoise is not None)
    schema = None if found.schema is None else schema_of(found.schema)
    writer = Writer.of(open_model(found.place, found.dtype))
    check_denoise(found, denoise, cached, writer.opened.model.about.causal)
    if found.adapter is None:
        merge_adapters(writer.opened.model)
    adapters = None if found.adapter is None else several_adapters(writer.opened, {ADAPTER: found.adapter})
    for note in writer.opened.about.notes:
        print(f"({note})", file=sys.stderr)
    sets = [set_prompt_of(text, found.part, writer) for text in texts] if found.part else []
    if sets:
        prompts = [Prompt(text, one.tokens) for text, one in zip(texts, sets, strict=True)]
    elif chats:
        prompts = [question(chat, writer) for chat in chats]
    else:
        prompts = [prompt_of(text, writer, found.tokens, keep_last=found.keep_last) for text in texts]
    ends = writer.answer_ends if chats else writer.ends
    constraint: Constraint | None = None
    if schema is not None:
        constraint = writer.grammars(ends).schema(schema)
    elif found.regex is not None:
        constraint = writer.grammars(ends).regex(found.regex)
    requests = [
        Request(
            tuple(prompt.ids),
            sampling,
            found.tokens,
            ends,
            found.samples,
            constraint=constraint,
            adapter=None if adapters is None else ADAPTER,
        )
        for prompt in prompts
    ]
    experts = put_experts_away(writer.opened.model, kept)
    if sets:
        return answer_parts(found, writer, texts, requests, sets)
    if not writer.opened.model.about.causal:
        return fill_in(found, writer, prompts, requests, denoise)
    began = time.perf_counter()
    samples = []
    engine = _engine(found, writer, requests, cache, adapters)
    for sample, piece in written(engine, writer, prompts, requests, found.stop):
        if sample is None:
            if not found.json:
                sys.stdout.write(piece)
                sys.stdout.flush()
            continue
        samples.append(sample)
        if found.json:
            print(json.dumps(sample.as_dict(), ensure_ascii=False), flush=True)
        elif sample.stopped == WORDS[Stop.CONTEXT]:
            print(f"({Stop.CONTEXT}: this model reads {writer.context} tokens)", file=sys.stderr)
    seconds = time.perf_counter() - began
    sum_up(samples, seconds)
    if experts is not None:
        print(f"({experts.line(sum(sample.tokens for sample in samples), seconds)})", file=sys.stderr)
    return 0


def _engine(
    found: argparse.Namespace,
    writer: Writer,
    requests: Sequence[Request],
    cache: CacheConfig,
    adapters: Several | None,
) -> Engine:
    """With room for all of these requests."""
    drafter = open_drafter(found.drafter, found.draft, writer.opened, found.dtype)
    acceptance = _acceptance(found)
    return Engine(
        writer.opened.model,
        rows=min(sum(each.samples for each in requests), ROWS),
        room=sum((len(each.prompt) + each.max_new_tokens) * each.samples for each in requests),
        drafter=drafter,
        acceptance=acceptance,
        depth=open_made("depth", found.depth, found.routers, writer.opened),
        mixture=open_made("mixture", found.mixture, found.datastore, writer.opened),
        pays=Pays() if drafter and acceptance.exact else None,  # the clock must not choose the text
        cache=cache,
        adapters=adapters,
    )


def _acceptance(found: argparse.Namespace) -> Acceptance:
    made: Acceptance = supplied("acceptance", found.acceptance, {"place": lambda: Path(found.judge)})
    return made


def _check_acceptance(found: argparse.Namespace) -> None:
    """Raises: UsageError where the acceptance is unknown, or has not what it needs, before anything is loaded."""
    wanted = needs(find("decode", found.acceptance, "acceptance").target)
    if "place" in wanted and found.judge is None:
        raise UsageError(f"the acceptance '{found.acceptance}' needs {WHAT['place']}: give --judge FILE")
    if found.judge is not None and "place" not in wanted:
        raise UsageError("--judge is for an acceptance that needs a file: give --acceptance autojudge, say")


def _arguments() -> Arguments:
    parser = Arguments(
        "generate",
        "Continue prompts with any model; the text streams out. With --chat it answers messages, as its own chat template\n"
        "writes them.",
    )
    parser.add_argument(
        "place",
        metavar="PLACE",
        help="a folder of a run, a packed model, experts or transformers, a GGUF file, hf:NAME@REVISION, or smollm2",
    )
    parser.add_argument(
        "prompts",
        nargs="*",
        metavar="PROMPT",
        help="text to go on from, one or several; '-' reads standard input, as does giving neither PROMPT nor --file",
    )
    parser.add_argument(
        "--file",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="a file that is a prompt; may be repeated",
    )
    parser.add_argument("--chat", action="store_true", help="each prompt is a user's message, to be answered")
    parser.add_argument(
        "--messages",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help='chats to answer, a JSON line each: {"messages": [...]}; or the messages of one, {"role": ..., "content": ...}; '
        "may be repeated",
    )
    parser.add_argument("--system", type=argument, metavar="TEXT", help="a system message before each chat")
    parser.add_argument("--tokens", type=_count, default=200, help="how many tokens at most (default 200)")
    parser.add_argument(
        "--samples", type=_count, default=1, metavar="N", help="continuations of each prompt (default 1)"
    )
    parser.add_argument(
        "--stop",
        type=_stop_string,
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; may be repeated",
    )
    parser.add_argument(
        "--part",
        type=argument,
        action="append",
        default=[],
        metavar="TEXT",
        help="a part of a set that stands where the prompt has {}: the answer does not depend on the order of the parts; repeat it",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--schema", type=Path, metavar="PATH", help="a JSON schema that each text follows")
    form.add_argument("--regex", metavar="EXPRESSION", help="a regular expression that matches each text as a whole")
    parser.add_argument(
        "--keep-last", action="store_true", help="of a prompt longer than the context, go on from its last tokens"
    )
    parser.add_argument(
        "--adapter",
        type=Path,
        metavar="FOLDER",
        help="read and answer with an adapter: the run of `shoestring tune` on this PLACE that trained it, or peft's files, on "
        "this base whatever they name; a packed one too",
    )
    parser.add_argument(
        "--drafter",
        metavar="NAME",
        help="propose tokens that are checked together: 'ngram' copies from the text, 'draft_model' "
        "asks a smaller model",
    )
    parser.add_argument(
        "--draft",
        metavar="PLACE",
        help="what the drafter needs: for draft_model and staged a smaller model of the same vocabulary, for fast_mtp and nest "
        "a file",
    )
    parser.add_argument(
        "--acceptance",
        default="exact",
        metavar="NAME",
        help="which drafted tokens stay: 'exact' changes no text (default); 'bild' and 'autojudge' may",
    )
    parser.add_argument("--judge", metavar="FILE", help="for --acceptance autojudge: what was trained for it")
    parser.add_argument(
        "--mixture",
        metavar="NAME",
        help="mix the probabilities with those of a datastore: 'knn_lm' or 'retomaton'",
    )
    parser.add_argument("--datastore", metavar="FILE", help="for --mixture: what `shoestring prepare datastore` made")
    parser.add_argument(
        "--depth", metavar="NAME", help="leave out parts of layers: 'skip_decode', 'ffn_skipllm' or 'dr_llm'"
    )
    parser.add_argument("--routers", metavar="FILE", help="for --depth dr_llm: what `shoestring prepare dr_llm` made")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default 0.8)")
    parser.add_argument("--top-k", type=int, default=0, help="only the k likeliest tokens; 0: all (default)")
    parser.add_argument(
        "--top-p", type=float, default=0.95, help="only the likeliest tokens that make up this mass (default 0.95)"
    )
    parser.add_argument(
        "--min-p", type=float, default=0.0, help="only tokens with this share of the likeliest one's probability"
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help="above 1: tokens that stand in the text already are less likely",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same texts (default 0)")
    parser.add_argument(
        "--dtype",
        type=dtype_named,
        metavar="TYPE",
        help=TYPES_HELP,
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="a line a sample: prompt, sample, text, prompt_tokens, tokens, seconds, stopped (end, length, context or stop), "
        "spent",
    )
    add_cache_flags(parser)
    add_expert_flags(parser)
    add_denoise_flags(parser)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)


def _stop_string(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("a stop string needs at least one character")
    return text
