"""`shoestring generate`: a trained run, or a packed model, goes on from a prompt, streamed."""

import sys
from collections.abc import Sequence
from pathlib import Path

from shoestring.cli.arguments import Arguments
from shoestring.config import build
from shoestring.decode.generate import Stop, generate
from shoestring.decode.sampler import SamplingConfig
from shoestring.errors import UsageError
from shoestring.shrink.folder import Packed, is_packed, load_packed
from shoestring.train.trained import Trained, load_trained


def run(words: Sequence[str]) -> int:
    parser = Arguments("generate", "Continue a prompt with a trained run or a packed model; the text streams out.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, or of a packed model")
    parser.add_argument("prompt", help="the text to go on from; '-' reads it from standard input")
    parser.add_argument("--tokens", type=int, default=200, help="how many tokens at most (default 200)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default 0.8)")
    parser.add_argument("--top-k", type=int, default=0, help="only the k likeliest tokens; 0: all (default)")
    parser.add_argument(
        "--top-p", type=float, default=0.95, help="only the likeliest tokens that make up this mass (default 0.95)"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (default 0)")
    found = parser.read(words)
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
    prompt = sys.stdin.read() if found.prompt == "-" else found.prompt
    if not prompt:
        raise UsageError("the prompt is empty: give some text to go on from")
    trained: Trained | Packed = load_packed(found.run) if is_packed(found.run) else load_trained(found.run)
    if isinstance(trained, Packed) and isinstance(trained.model.decoder, str):
        print(f"(slow: every token goes module by module, as {trained.model.decoder})", file=sys.stderr)
    sys.stdout.write(prompt)
    stream, stops = trained.tokenizer.stream(), list[Stop]()
    ids = trained.tokenizer.encode(prompt)
    for token in generate(trained.model, ids, settings, end=trained.tokenizer.end, on_stop=stops.append):
        sys.stdout.write(stream.push(token))
        sys.stdout.flush()
    sys.stdout.write(stream.finish() + "\n")
    if stops == [Stop.CONTEXT]:
        print(f"({Stop.CONTEXT}: this model reads {trained.model.config.context} tokens)", file=sys.stderr)
    return 0
