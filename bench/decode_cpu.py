"""Reading and writing of several rows at once on this CPU: ours in 4 bits as the file has them, in float32 and bfloat16, beside
transformers with the same weights and llama.cpp with the same file.

Each side answers so many rows of random tokens, --prompt in and --answer out, greedily and with no end. Reading is timed until each
row has its first token; writing is what --answer more tokens take. The sides take turns in each round, in an order that turns too.
Printed are medians of the rounds, tokens/s of all rows together, and the median of the rounds' ratios to the first side. llama.cpp
keeps keys and values as its users do, in float16; the others in the type of their activations. It is left out where
llama-cpp-python is not installed, which is said. transformers reads all rows as one batch, whose logits it makes for the last
token alone, and then a token of each row at a time, with its own cache and attention (SDPA).
"""

import argparse
import ctypes
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from model_sides import llama_cpp

from shoestring import atomic, kernels
from shoestring.base import open_model
from shoestring.base.openers.smollm2 import NAME, file_of_package
from shoestring.budget.machine import probe
from shoestring.contract.model import LanguageModel
from shoestring.decode import Engine, Request, Sampling
from shoestring.errors import ShoestringError, UsageError
from shoestring.shrink.export import stock_of
from shoestring.train.run_folder import environment

SIDES = ("packed", "float32", "bfloat16", "transformers float32", "transformers bfloat16", "llama.cpp")


class Side(Protocol):
    """A loaded model."""

    def seconds(self, prompts: Sequence[Sequence[int]], answer: int) -> tuple[float, float]:
        """(seconds of reading, until each row has its first token; of writing `answer` more for each)."""
        ...


class Ours:
    """A model in the engine."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def seconds(self, prompts: Sequence[Sequence[int]], answer: int) -> tuple[float, float]:
        # all prompts in one pass, and then all rows in each: reading and writing can be timed apart
        engine = Engine(
            self.model,
            rows=len(prompts),
            tokens=sum(map(len, prompts)),
            room=sum(len(p) + answer + 17 for p in prompts),
        )
        for prompt in prompts:
            engine.submit(Request(tuple(prompt), Sampling(temperature=0), max_new_tokens=1 + answer))
        began = time.perf_counter()
        events = engine.step()
        reading, began = time.perf_counter() - began, time.perf_counter()
        assert len(events) == len(prompts)
        while engine.busy:
            engine.step()
        assert engine.passes == 1 + answer
        return reading, time.perf_counter() - began


class Transformers:
    """The same weights as transformers' own class, by its forward pass and cache."""

    def __init__(self, place: str, dtype: torch.dtype) -> None:
        opened = open_model(place, torch.float32)
        self.model = stock_of(opened.model).to(dtype).eval()

    @torch.no_grad()
    def seconds(self, prompts: Sequence[Sequence[int]], answer: int) -> tuple[float, float]:
        began = time.perf_counter()
        found = self.model(torch.tensor(prompts), use_cache=True, logits_to_keep=1)
        latest = found.logits[:, -1:].argmax(-1)
        reading, began = time.perf_counter() - began, time.perf_counter()
        for _ in range(answer):
            found = self.model(latest, past_key_values=found.past_key_values, use_cache=True)
            latest = found.logits[:, -1:].argmax(-1)
        return reading, time.perf_counter() - began


class LlamaCpp:
    """A GGUF file in llama.cpp, by its C interface: the rows of a step are one batch."""

    def __init__(self, file: Path, context: int, rows: int, threads: int, stack: ExitStack) -> None:
        self.api = api = llama_cpp()
        model = api.llama_model_load_from_file(str(file).encode(), api.llama_model_default_params())
        if not model:
            raise ShoestringError(f"llama.cpp does not load {file.name}")
        stack.callback(api.llama_model_free, model)
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        settings = api.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = rows * context, rows
        settings.n_batch = settings.n_ubatch = 512
        settings.n_threads = settings.n_threads_batch = threads
        self.context = api.llama_init_from_model(model, settings)
        stack.callback(api.llama_free, self.context)
        self.batch = api.llama_batch_init(512, 0, 1)
        stack.callback(api.llama_batch_free, self.batch)

    def seconds(self, prompts: Sequence[Sequence[int]], answer: int) -> tuple[float, float]:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        began = time.perf_counter()
        latest = [self._read([(row, prompt, 0)])[0] for row, prompt in enumerate(prompts)]
        reading, began = time.perf_counter() - began, time.perf_counter()
        for step in range(answer):
            latest = self._read([(row, [token], len(prompts[row]) + step) for row, token in enumerate(latest)])
        return reading, time.perf_counter() - began

    def _read(self, rows: Sequence[tuple[int, Sequence[int], int]]) -> list[int]:
        """rows: (number, tokens, position of the first). Returns the likeliest next token of each."""
        batch, at, wanted = self.batch, 0, []
        for row, tokens, first in rows:
            for place, token in enumerate(tokens):
                batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, first + place, 1
                batch.seq_id[at][0], batch.logits[at] = row, place == len(tokens) - 1
                at += 1
            wanted.append(at - 1)
        batch.n_tokens = at
        if self.api.llama_decode(self.context, batch):
            raise ShoestringError("llama.cpp could not decode")
        found = []
        for place in wanted:
            logits = self.api.llama_get_logits_ith(self.context, place)
            held = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * self.vocabulary)).contents
            found.append(int(torch.frombuffer(held, dtype=torch.float32).argmax()))
        return found


def built(options: argparse.Namespace, stack: ExitStack) -> tuple[dict[str, Side], dict[str, str]]:
    """(the sides, why others are left out)."""
    context = options.prompt + options.answer + 2
    file = file_of_package() if options.place == NAME else Path(options.place)

    def ours(dtype: Any) -> Callable[[], Side]:
        return lambda: Ours(open_model(options.place, dtype).model)

    builds: dict[str, Callable[[], Side]] = {
        "packed": ours("packed"),
        "float32": ours(torch.float32),
        "bfloat16": ours(torch.bfloat16),
        "transformers float32": lambda: Transformers(options.place, torch.float32),
        "transformers bfloat16": lambda: Transformers(options.place, torch.bfloat16),
        "llama.cpp": lambda: LlamaCpp(file, context, max(options.rows), options.threads, stack),
    }
    sides, left_out = dict[str, Side](), dict[str, str]()
    for name in options.sides:
        try:
            sides[name] = builds[name]()
        except UsageError as error:
            left_out[name] = str(error)
    return sides, left_out


def measure(sides: dict[str, Side], rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens/s of each side: of each round, and what follows from them."""
    made = torch.Generator().manual_seed(rows)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(options.rounds + 1):  # the first is not counted
        # other tokens each round: what was read is not found again
        prompts = torch.randint(1000, 20000, (rows, options.prompt), generator=made).tolist()
        for name in names[number % len(names) :] + names[: number % len(names)]:
            reading, writing = sides[name].seconds(prompts, options.answer)
            if number:
                rates[name].append((rows * options.prompt / reading, rows * options.answer / writing))
    found = dict[str, Any]()
    for name in names:
        each = {"reading": [one for one, _ in rates[name]], "writing": [one for _, one in rates[name]]}
        first = {"reading": [one for one, _ in rates[names[0]]], "writing": [one for _, one in rates[names[0]]]}
        found[name] = {
            what: {
                "tokens_per_second": median(each[what]),
                "ratio": median(own / other for own, other in zip(each[what], first[what], strict=True)),
                "rounds": each[what],
            }
            for what in each
        }
    return found


def show(rows: int, found: dict[str, Any]) -> None:
    print(
        f"\n{rows} row{'s' * (rows > 1)}{'':16}{'reading, tokens/s':>20}{'ratio':>8}{'writing, tokens/s':>20}{'ratio':>8}"
    )
    for name, side in found.items():
        figures = [(side[what]["tokens_per_second"], side[what]["ratio"]) for what in ("reading", "writing")]
        print(f"{name:22}" + "".join(f"{rate:20.0f}{ratio:8.2f}" for rate, ratio in figures))


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", default="smollm2", help="a GGUF file; default smollm2")
    parser.add_argument("--rows", nargs="*", type=int, default=[1, 8, 32], help="default 1 8 32")
    parser.add_argument("--prompt", type=int, default=128, help="tokens in, default 128")
    parser.add_argument("--answer", type=int, default=64, help="tokens out, default 64")
    parser.add_argument("--rounds", type=int, default=5, help="of all sides, default 5")
    parser.add_argument("--threads", type=int, default=2, help="default 2")
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=SIDES, help="ratios are over the first")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, machine and every figure there")
    options = parser.parse_args(words)
    if not options.sides or min([options.prompt, options.answer, options.rounds, options.threads, *options.rows]) < 1:
        parser.error("--rows, --prompt, --answer, --rounds and --threads are at least 1, and --sides are some")
    torch.set_num_threads(options.threads)
    print(f"kernel: {kernels.kernel_in_use()}, {options.threads} threads, {options.prompt} in, {options.answer} out")
    results = dict[int, Any]()
    with ExitStack() as stack:
        sides, left_out = built(options, stack)
        for name, why in left_out.items():
            print(f"{name} is left out: {why}")
        for rows in options.rows:
            results[rows] = measure(sides, rows, options)
            show(rows, results[rows])
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        with tempfile.TemporaryDirectory() as scratch:
            machine = probe("cpu", cache=Path(scratch), fresh=True)
        about = {"settings": settings, "environment": environment(machine), "kernel": kernels.kernel_in_use()}
        atomic.write_text(options.json, json.dumps({**about, "left_out": left_out, "rows": results}))


if __name__ == "__main__":
    main(sys.argv[1:])
