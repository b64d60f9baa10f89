"""`shoestring generate`: a trained run, or a packed model, goes on from prompts, streamed."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from shoestring.cli.arguments import Arguments
from shoestring.config import build
from shoestring.decode.generate import Stop, generate
from shoestring.decode.sampler import SamplingConfig
from shoestring.decode.stop_strings import StopStrings
from shoestring.errors import UsageError
from shoestring.shrink.folder import Packed, is_packed, load_packed
from shoestring.train.trained import Trained, load_trained

WORDS = {Stop.END: "end", Stop.LENGTH: "length", Stop.CONTEXT: "context"}
STOP_STRING = "stop"


@dataclass(frozen=True)
class Prompt:
    """What to go on from.

    text: as it was given.
    ids: the tokens of it that the model reads.
    """

    text: str
    ids: list[int]


@dataclass(frozen=True)
class Sample:
    """One continuation, as --json prints it.

    prompt, text: what was given, and what was written after it.
    sample: its number among those of this prompt, from 1.
    prompt_tokens, tokens: read, and written.
    seconds: that both took.
    stopped: 'end' of the text, 'length' as --tokens allows, full 'context', or 'stop' for a stop string.
    """

    prompt: str
    sample: int
    text: str
    prompt_tokens: int
    tokens: int
    seconds: float
    stopped: str


def run(words: Sequence[str]) -> int:
    found = _arguments().read(words, mixed=True)
    settings = build(
        SamplingConfig,
        {
            "temperature": found.temperature,
            "top_k": found.top_k,
            "top_p": found.top_p,
            "seed": found.seed,
            "max_new_tokens": found.tokens,
        },
        {"max_new_tokens": "--tokens", "top_k": "--top-k", "top_p": "--top-p"}.get,
    )
    if found.samples > 1 and settings.temperature == 0:
        raise UsageError(
            f"--samples {found.samples} at --temperature 0 is one text {found.samples} times: give one of them"
        )
    texts = _texts(found.prompts, found.file)
    model = _load(found.run)
    if isinstance(model, Packed) and isinstance(model.model.decoder, str):
        print(f"(slow: every token goes module by module, as {model.model.decoder})", file=sys.stderr)
    prompts = [_prompt(text, model, settings, keep_last=found.keep_last) for text in texts]
    samples = []
    for number, prompt in enumerate(prompts, start=1):
        for index in range(found.samples):
            if not found.json and len(prompts) * found.samples > 1:
                print(f"--- prompt {number} of {len(prompts)}, sample {index + 1} of {found.samples}")
            own = replace(settings, seed=settings.seed + index)
            sample = _write(model, prompt, own, found.stop, index + 1, shown=not found.json)
            samples.append(sample)
            if found.json:
                print(json.dumps(asdict(sample), ensure_ascii=False), flush=True)
            elif sample.stopped == WORDS[Stop.CONTEXT]:
                print(f"({Stop.CONTEXT}: this model reads {model.model.about.context} tokens)", file=sys.stderr)
    read, written = sum(sample.prompt_tokens for sample in samples), sum(sample.tokens for sample in samples)
    seconds = sum(sample.seconds for sample in samples)
    print(
        f"({read} tokens read, {written} written in {seconds:.2f} s: {written / seconds:.1f} tokens/s)", file=sys.stderr
    )
    return 0


def _arguments() -> Arguments:
    parser = Arguments(
        "generate",
        "Continue prompts with a trained run or a packed model; the text streams out.\n"
        "A folder for transformers and a GGUF file are written by other commands, and cannot be read here yet.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, or of a packed model")
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
    parser.add_argument("--tokens", type=int, default=200, help="how many tokens at most (default 200)")
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
        "--keep-last", action="store_true", help="of a prompt longer than the context, go on from its last tokens"
    )
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default 0.8)")
    parser.add_argument("--top-k", type=int, default=0, help="only the k likeliest tokens; 0: all (default)")
    parser.add_argument(
        "--top-p", type=float, default=0.95, help="only the likeliest tokens that make up this mass (default 0.95)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same text; sample n has seed + n - 1 (default 0)"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="a line a sample: prompt, sample, text, prompt_tokens, tokens, seconds, stopped (end, length, context or stop)",
    )
    return parser


def _load(path: Path) -> Trained | Packed:
    """Raises: UsageError, also for an export, which cannot be read back yet."""
    foreign = "a GGUF file" if path.suffix == ".gguf" else "a transformers folder"
    if (path.is_file() and path.suffix == ".gguf") or (path / "config.json").is_file():
        raise UsageError(f"{path} is {foreign}, which cannot be read here yet: give the folder of the run itself")
    return load_packed(path) if is_packed(path) else load_trained(path)


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


def _prompt(text: str, model: Trained | Packed, settings: SamplingConfig, *, keep_last: bool) -> Prompt:
    """The prompt in tokens. Raises: UsageError where it is longer than the context, unless its last tokens will do."""
    ids, context = model.tokenizer.encode(text), model.model.about.context
    if len(ids) <= context:
        return Prompt(text, ids)
    if not keep_last:
        raise UsageError(
            f"the prompt has {len(ids)} tokens, and this model reads {context}: "
            "shorten it, or give --keep-last to go on from its last tokens"
        )
    kept = context - min(settings.max_new_tokens, context // 2)
    print(
        f"(the prompt has {len(ids)} tokens, and this model reads {context}: the last {kept} are kept)", file=sys.stderr
    )
    return Prompt(text, ids[-kept:])


def _write(
    model: Trained | Packed, prompt: Prompt, settings: SamplingConfig, stop: Sequence[str], number: int, *, shown: bool
) -> Sample:
    """Continue a prompt. shown: on standard output, as it comes."""
    stops, stream, strings = list[Stop](), model.tokenizer.stream(), StopStrings(stop)
    pieces: list[str] = []

    def put(piece: str) -> None:
        pieces.append(piece)
        if shown:
            sys.stdout.write(piece)
            sys.stdout.flush()

    if shown:
        sys.stdout.write(prompt.text)
    count, began = 0, time.perf_counter()
    for token in generate(model.model, prompt.ids, settings, end=model.tokenizer.end, on_stop=stops.append):
        count += 1
        put(strings.push(stream.push(token)))
        if strings.found:
            break
    put(strings.push(stream.finish()) + strings.finish())
    seconds = time.perf_counter() - began
    if shown:
        sys.stdout.write("\n")
    stopped = STOP_STRING if strings.found else WORDS[stops[0]]
    return Sample(prompt.text, number, "".join(pieces), len(prompt.ids), count, seconds, stopped)
