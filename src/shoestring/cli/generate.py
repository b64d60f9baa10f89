"""`shoestring generate`: any model goes on from prompts, or answers messages, streamed."""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoestring.base import open_model
from shoestring.base.adapters import several_adapters
from shoestring.base.drafting import check_drafter, open_drafter
from shoestring.base.writer import Writer
from shoestring.budget.charge import NOTHING, Charge
from shoestring.budget.units import show
from shoestring.cli.arguments import TYPES_HELP, Arguments, dtype_named
from shoestring.cli.chats import read_chats
from shoestring.config import build
from shoestring.data.chat import Message
from shoestring.decode import Engine, Event, Request, Sampling, Spent, Stop
from shoestring.decode.acceptance import Acceptance
from shoestring.decode.answer_text import AnswerText
from shoestring.decode.drafter import Drafter
from shoestring.decode.engine import ROWS
from shoestring.decode.pays import Pays
from shoestring.decode.sampling import Constraint
from shoestring.decode.supplied import WHAT, needs, supplied
from shoestring.errors import UsageError
from shoestring.json_files import NotJson, parse_json
from shoestring.method import find
from shoestring.tune.several import Several

WORDS = {Stop.END: "end", Stop.LENGTH: "length", Stop.CONTEXT: "context", Stop.CANCELLED: "stop", Stop.ROOM: "room"}
"""What --json says of why a text ended; one that a stop string ended was cancelled."""


ADAPTER = "adapter"
"""What the one that a command names is called."""


@dataclass(frozen=True)
class Prompt:
    """What to go on from.

    text: as it was given; of a chat, as the model's template writes it.
    ids: the tokens of it that the model reads.
    messages: of a chat.
    """

    text: str
    ids: list[int]
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One continuation, as --json prints it.

    prompt, text: what was given, and what was written after it.
    messages: that were given, where it is a chat.
    sample: its number among those of this prompt, from 1.
    prompt_tokens, tokens: read, and written.
    seconds: that both took; what was read together is divided.
    stopped: 'end' of the text, 'length' as --tokens allows, full 'context', or 'stop' for a stop string.
    spent: positions read, reused and wasted, FLOPs, bytes of weights and cache moved.
    changed: tokens of drafts that stayed though the model chose another; not said where there are none.
    """

    prompt: str
    messages: tuple[Message, ...]
    sample: int
    text: str
    prompt_tokens: int
    tokens: int
    seconds: float
    stopped: str
    spent: Charge
    changed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self) | {"spent": self.spent.as_dict()}
        silent = {name for name in ("messages", "changed") if not found[name]}
        return {key: value for key, value in found.items() if key not in silent}


def run(words: Sequence[str]) -> int:
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
    chats = _chats(found)
    texts = [] if chats else _texts(found.prompts, found.file)
    schema = None if found.schema is None else _schema(found.schema)
    writer = Writer.of(open_model(found.place, found.dtype))
    adapters = None if found.adapter is None else several_adapters(writer.opened, {ADAPTER: found.adapter})
    drafter, acceptance = open_drafter(found.drafter, found.draft, writer.opened, found.dtype), _acceptance(found)
    for note in writer.opened.about.notes:
        print(f"({note})", file=sys.stderr)
    if chats:
        prompts = [_question(chat, writer) for chat in chats]
    else:
        prompts = [_prompt(text, writer, found.tokens, keep_last=found.keep_last) for text in texts]
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
    began = time.perf_counter()
    samples = []
    for sample, piece in _written(writer, prompts, requests, found.stop, drafter, acceptance, adapters):
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
    _sum_up(samples, time.perf_counter() - began)
    return 0


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


def _sum_up(samples: Sequence[Sample], seconds: float) -> None:
    """One line of what all of it took."""
    written, spent = sum(sample.tokens for sample in samples), sum((sample.spent for sample in samples), NOTHING)
    beside = [f"{count} {what}" for what, count in (("reused", spent.reused), ("wasted", spent.wasted)) if count]
    print(
        f"({', '.join([f'{spent.read} positions read', *beside])}, {written} tokens written in {seconds:.2f} s: "
        f"{written / seconds:.1f} tokens/s; {show('flops', spent.flops)}, {show('bytes', spent.moved)} moved)",
        file=sys.stderr,
    )
    if changed := sum(sample.changed for sample in samples):
        texts = sum(sample.changed > 0 for sample in samples)
        print(
            f"({changed} drafted tokens stayed though the model chose others: {texts} of {len(samples)} texts are not its own)",
            file=sys.stderr,
        )


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
    parser.add_argument("--system", type=_argument, metavar="TEXT", help="a system message before each chat")
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
        help="read and answer with an adapter in peft's files, on this base whatever the folder names; a packed one too",
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
    return parser


def _chats(found: argparse.Namespace) -> list[tuple[Message, ...]]:
    """The chats that are to be answered; none where prompts are to be continued. Raises: UsageError."""
    if found.system is not None and not (found.chat or found.messages):
        raise UsageError("--system is a message of a chat: give --chat, or --messages PATH")
    if not (found.chat or found.messages):
        return []
    if found.keep_last:
        raise UsageError("--keep-last would cut a chat in the middle of its template: leave it out")
    chats = [chat for path in found.messages for chat in read_chats(path)]
    if found.prompts or found.file or not found.messages:
        chats += [({"role": "user", "content": text},) for text in _texts(found.prompts, found.file)]
    before: tuple[Message, ...] = () if found.system is None else ({"role": "system", "content": found.system},)
    return [(*before, *chat) for chat in chats]


def _question(messages: tuple[Message, ...], writer: Writer) -> Prompt:
    """A chat that is to be answered, in tokens. Raises: UsageError."""
    ids = writer.chat_ids(messages)
    if len(ids) > writer.context:
        raise UsageError(f"the chat has {len(ids)} tokens, and this model reads {writer.context}: shorten it")
    return Prompt(writer.chat.text(messages), ids, messages)


def _schema(path: Path) -> dict[str, Any]:
    """The JSON schema of a file. Raises: UsageError."""
    try:
        schema = parse_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except NotJson as error:
        raise UsageError(f"{path}, line {error.line}, is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise UsageError(f"{path} is no JSON schema: one is an object")
    return schema


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)


def _stop_string(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("a stop string needs at least one character")
    return text


def _texts(given: Sequence[str], files: Sequence[Path]) -> list[str]:
    """The prompts: those of the command line, then those of files. Raises: UsageError."""
    if given.count("-") > 1:
        raise UsageError("'-' is given twice, and standard input is read once")
    if not given and not files:
        if sys.stdin.isatty():
            raise UsageError("no prompt: give PROMPT or --file PATH, or send text to standard input")
        given = ["-"]
    texts = [_standard_input() if each == "-" else _argument(each) for each in given]
    for path in files:
        try:
            texts.append(_decoded(path.read_bytes(), str(path)))
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if not all(texts):
        raise UsageError("the prompt is empty: give some text to go on from")
    return texts


def _standard_input() -> str:
    return _decoded(sys.stdin.buffer.read(), "standard input")


def _argument(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt is not UTF-8: character {error.start + 1} of it is no text") from None
    return text


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UsageError(
            f"{name} is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start}, line {line}; "
            "convert it first, as by: iconv -f latin1 -t utf-8"
        ) from None


def _prompt(text: str, writer: Writer, tokens: int, *, keep_last: bool) -> Prompt:
    """The prompt in tokens. Raises: UsageError where it is longer than the context, unless its last tokens will do."""
    ids, context = writer.text_ids(text), writer.context
    if len(ids) <= context:
        return Prompt(text, ids)
    if not keep_last:
        raise UsageError(
            f"the prompt has {len(ids)} tokens, and this model reads {context}: "
            "shorten it, or give --keep-last to go on from its last tokens"
        )
    kept = context - min(tokens, context // 2)
    print(
        f"(the prompt has {len(ids)} tokens, and this model reads {context}: the last {kept} are kept)", file=sys.stderr
    )
    return Prompt(text, ids[-kept:])


@dataclass
class Text:
    """A text that is being written.

    prompt, number: what it goes on from, and which of the samples it is.
    answer: of `tokens` tokens so far. pending: what is still to be shown. ended: why, and what it took.
    """

    prompt: Prompt
    number: int
    answer: AnswerText
    tokens: int = 0
    pending: str = ""
    ended: tuple[Stop, Spent] | None = None


def _written(
    writer: Writer,
    prompts: Sequence[Prompt],
    requests: Sequence[Request],
    stops: Sequence[str],
    drafter: Drafter | None,
    acceptance: Acceptance,
    adapters: Several | None,
) -> Iterator[tuple[Sample | None, str]]:
    """(None, a piece of what is to be shown), and (a sample, '') when it is whole: prompt after prompt, sample after sample, though
    all are written together."""
    texts: dict[tuple[int, int], Text] = {}
    room = sum((len(each.prompt) + each.max_new_tokens) * each.samples for each in requests)
    rows = sum(each.samples for each in requests)
    pays = Pays() if drafter and acceptance.exact else None  # the clock must not choose the text
    engine = Engine(
        writer.opened.model,
        rows=min(rows, ROWS),
        room=room,
        drafter=drafter,
        acceptance=acceptance,
        pays=pays,
        adapters=adapters,
    )
    for number, (prompt, request) in enumerate(zip(prompts, requests, strict=True), start=1):
        ticket = engine.submit(request)
        for index in range(request.samples):
            header = f"--- prompt {number} of {len(prompts)}, sample {index + 1} of {request.samples}\n" * (rows > 1)
            header += "" if prompt.messages else prompt.text
            answer = AnswerText(writer.tokenizer.stream(), stops)
            texts[ticket, index] = Text(prompt, index + 1, answer, pending=header)
    queue = list(texts.values())
    while queue:
        for event in engine.step():
            _take(event, texts[event.number, event.sample], engine)
        while queue:
            first = queue[0]
            if first.pending:
                yield None, first.pending
                first.pending = ""
            if first.ended is None:
                break
            yield None, "\n"
            yield _sample(queue.pop(0)), ""
    for note in engine.notes:
        print(f"({note})", file=sys.stderr)


def _take(event: Event, text: Text, engine: Engine) -> None:
    """Put what a pass brought to a text."""
    for written in event.written:
        if text.answer.stopped:
            break
        text.tokens += 1
        text.pending += text.answer.push(written.token)
        if text.answer.stopped and event.stop is None:
            engine.cancel(event.number, event.sample)
    if event.stop is not None and event.spent is not None:
        text.pending += text.answer.finish()
        text.ended = event.stop, event.spent


def _sample(text: Text) -> Sample:
    """A text that is whole."""
    assert text.ended is not None
    stop, spent = text.ended
    return Sample(
        text.prompt.text,
        text.prompt.messages,
        text.number,
        text.answer.text,
        len(text.prompt.ids),
        text.tokens,
        spent.total,
        WORDS[Stop.CANCELLED] if text.answer.stopped else WORDS[stop],
        spent.charge,
        spent.changed,
    )
