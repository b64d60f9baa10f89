"""Caches that hold less, on one model: what each costs in likelihood and recall, and what it saves in bytes and seconds.

Each policy keeps --shares of the tokens, at each of --lengths; each store holds all of them. Of every arm are told: the loss, in
nats a token, on the last --last tokens of long documents, which the arm reads as an engine would; the share of needles that it
finds, and of values where several keys have one; bytes that its cache takes by its own count, and by which the process grew
(anonymous memory, so not mapped files); seconds of reading the beginning, and milliseconds a token after it. `whole` reads prompts
whole before they are cut, as most methods were published; else memory is fixed from the start.

cache_peers.py sets ours beside kvpress. With --json every arm is kept as it is measured: the same command goes on where it was
stopped, on the same machine. --training measures the peak memory of a training step of a small model with `mini_sequences` and
without, each in a process of its own.
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from stopped import begun
from torch.nn import functional as F

from shoestring import atomic
from shoestring.base import open_model
from shoestring.base.opened import Opened
from shoestring.budget.machine import probe
from shoestring.config import Choice, build
from shoestring.contract.batch import IGNORED
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.cache_budget import CacheConfig, store_within
from shoestring.decode.row import Row
from shoestring.decode.work import RowWork
from shoestring.errors import UsageError
from shoestring.method import methods
from shoestring.task import Task
from shoestring.train.run_folder import environment

KEYS = 8
"""Whose values a text gives; one is asked for."""
GREEDY = Sampling(temperature=0)
HERE = Path(__file__).resolve().parent


def anonymous() -> int:
    """Bytes of this process that are no file's. What was freed is given back first, where the C library can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return resident("RssAnon")


def resident(key: str) -> int:
    """A figure of this process in /proc, in bytes; 0 where there is none."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def documents(opened: Opened, folder: Path, length: int, count: int) -> list[list[int]]:
    """Texts of so many tokens, of the longest files. Raises: UsageError where there are not enough."""
    assert opened.tokenizer is not None
    files = sorted(folder.rglob("*.md"), key=lambda path: -path.stat().st_size)
    whole = [token for path in files for token in opened.tokenizer.encode(path.read_text())]
    if len(whole) < length * count:
        raise UsageError(
            f"{folder} has {len(whole)} tokens, and {count} documents of {length} are wanted: name another"
        )
    return [whole[length * number : length * (number + 1)] for number in range(count)]


@torch.inference_mode()
def score(opened: Opened, config: CacheConfig, text: Sequence[int], last: int, tokens: int) -> dict[str, float]:
    """Read a text, and tell how likely its end is."""
    prompt = len(text) - last
    row = Row(0, 0, Request(tuple(text[:prompt]), GREEDY, last), 0, list(text), 0.0)
    before, losses = anonymous(), list[torch.Tensor]()
    store = store_within(opened.model, config, rows=1, room=len(text))
    began = time.perf_counter()
    row.held = store.admit(row)
    grown, prefill = 0, 0.0
    while row.held < len(text) - 1:
        reading = row.held < prompt
        end = prompt if reading else len(text) - 1
        # the end is read a token at a time, as what is written is
        count = store.allowed(row, min(tokens, end - row.held)) if reading else 1
        store.extend(row, row.held + count)
        piece = text[row.held : row.held + count]
        work = RowWork(row, piece, outputs=not reading)
        found, _ = store.read(opened.model, [work])
        first, row.held = row.held, row.held + count
        store.keep(row, first, range(count))
        if not reading:
            losses.append(F.cross_entropy(found[0].logits, torch.tensor(text[first + 1 : row.held + 1])))
        if reading and row.held == prompt:
            prefill = time.perf_counter() - began
            grown = anonymous() - before
            began = time.perf_counter()
    after = time.perf_counter() - began
    grown = max(grown, anonymous() - before)
    figures = {
        "loss": float(torch.stack(losses).mean()),
        "bytes": store.nbytes,
        "elsewhere": store.elsewhere,
        "grown": grown,
    }
    store.drop(row)
    return {**figures, "prefill_seconds": prefill, "ms_a_token": 1e3 * after / len(losses)}


def recall(
    opened: Opened, config: CacheConfig, length: int, items: int, value_items: int, tokens: int
) -> dict[str, float]:
    """The shares of needles and of values that are found in prompts of about so many tokens; 0 where none are asked for."""
    assert opened.tokenizer is not None
    right = {"needle": 0.0, "key_value": 0.0}
    for kind, hidden, count in (("needle", 1, items), ("key_value", KEYS, value_items)):
        task: Task = Choice.of("task", "needle", kind="task", sentences=max(1, length // 11), needles=hidden).build()
        for problem in task.problems("test", 0, count):
            ids = opened.tokenizer.encode(problem.prompt)[-(opened.model.about.context - 16) :]
            engine = Engine(opened.model, rows=1, tokens=tokens, room=len(ids) + 12, cache=config)
            (got,) = engine.run([Request(tuple(ids), GREEDY, 12)])
            right[kind] += task.check(problem, opened.tokenizer.decode(list(got.tokens))).value / count
    return right


def arms(
    shares: Sequence[float], policies: Sequence[str], stores: Sequence[str], whole: bool
) -> dict[str, CacheConfig]:
    """What is measured, by name."""
    made = {store: build(CacheConfig, {"store": store}) for store in sorted(stores, key=lambda name: name != "plain")}
    for policy in policies:
        for share in shares:
            tree = {"budget": f"{100 * share}%", "policy": policy, "whole": whole}
            made[f"{policy} {100 * share:g} %"] = build(CacheConfig, tree)
    return made


def measure(
    opened: Opened, config: CacheConfig, texts: Sequence[Sequence[int]], options: argparse.Namespace
) -> dict[str, float]:
    found = list[dict[str, float]]()
    for text in texts:
        found.append(score(opened, config, text, min(options.last, len(text) // 2), options.tokens))
    mean = {key: sum(each[key] for each in found) / len(found) for key in found[0]}
    return mean | recall(opened, config, len(texts[0]), options.items, options.values, options.tokens)


def peak(context: int, pieces: bool, width: int, answer: Any) -> None:
    """Peak bytes of one training step of a small model, put to a queue."""
    from shoestring.contract.edit import Evidence
    from shoestring.model import ModelConfig, Transformer
    from shoestring.objective.cross_entropy import Fused
    from shoestring.surgery.edits.mini_sequences import MiniSequences

    sizes = {"layers": 2, "width": width, "heads": 4, "hidden": 8 * width, "vocabulary": 4096, "context": context}
    model: Any = Transformer(build(ModelConfig, sizes))
    if pieces:
        edit = MiniSequences(length=min(512, context // 4))
        model = edit.apply(model, edit.decide(model, Evidence()))
    from shoestring.contract.batch import Inputs

    tokens = torch.randint(4096, (1, context))
    reading = model.read(Inputs(tokens))
    targets = F.pad(tokens[:, 1:], (0, 1), value=IGNORED)
    Fused(min(512, context))(reading.hidden, reading.head.weight, targets).backward()
    # VmHWM is of this program alone; getrusage's peak is also of the process that started it
    answer.put(resident("VmHWM"))


def training(contexts: Sequence[int], width: int) -> dict[str, dict[str, int]]:
    """Peak bytes by context, with pieces and without."""
    found, made = dict[str, dict[str, int]](), multiprocessing.get_context("spawn")
    for context in contexts:
        for pieces in (False, True):
            answer = made.Queue()
            one = made.Process(target=peak, args=(context, pieces, width, answer))
            one.start()
            found.setdefault(str(context), {})["pieces" if pieces else "whole"] = answer.get(timeout=3600)
            one.join()
    return found


def main(words: Sequence[str]) -> None:
    policies = [card.name for card in methods("decode", "cache policy")]
    stores = [card.name for card in methods("decode", "cache store")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", default="smollm2", help="a model, as `shoestring generate` takes it")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of weights, keys and values; default: as stored"
    )
    parser.add_argument("--corpus", type=Path, default=HERE.parent / "docs", help="a folder of long *.md texts")
    parser.add_argument("--lengths", nargs="*", type=int, default=[2048, 8192])
    parser.add_argument("--shares", nargs="*", type=float, default=[0.5, 0.25, 0.1])
    parser.add_argument("--policies", nargs="*", default=policies, choices=policies)
    parser.add_argument("--stores", nargs="*", default=stores, choices=stores, help="'plain' is the whole cache")
    parser.add_argument("--whole", action="store_true", help="prompts are read whole and then cut")
    parser.add_argument("--last", type=int, default=512, help="tokens whose loss is told")
    parser.add_argument("--count", type=int, default=4, help="documents")
    parser.add_argument("--items", type=int, default=20, help="needles, default 20")
    parser.add_argument("--values", type=int, help="of keys; default: as many as needles")
    parser.add_argument("--tokens", type=int, default=512, help="places of a pass")
    parser.add_argument("--training", nargs="*", type=int, default=[], metavar="CONTEXT", help="as 2048 8192 32768")
    parser.add_argument("--training-width", type=int, default=128)
    parser.add_argument("--smallest", action="store_true", help="does it run? nothing that it prints is a measurement")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(words)
    if options.smallest:
        options.lengths, options.shares, options.last, options.count, options.items = [96], [0.5], 8, 1, 1
        options.policies = options.policies[:2]
        options.training, options.training_width = [64], 32
    options.values = options.items if options.values is None else options.values
    opened = open_model(options.place, getattr(torch, options.dtype) if options.dtype else None)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    about = environment(probe())
    results = begun(options.json, settings, about).get("lengths", {})

    def keep(peaks: dict[str, dict[str, int]]) -> None:
        if options.json:
            content = {"settings": settings, "environment": about, "lengths": results, "training": peaks}
            atomic.write_text(options.json, json.dumps(content, indent=1) + "\n")

    for length in options.lengths:
        texts = documents(opened, options.corpus, length, options.count)
        print(f"\n{length} tokens")
        print(
            f"{'':22}{'loss':>8}{'needle':>8}{'values':>8}{'MB':>9}{'grown':>9}{'elsewhere':>10}{'read s':>8}{'ms/token':>9}"
        )
        rows = results.setdefault(str(length), {"arms": {}})["arms"]
        for name, config in arms(options.shares, options.policies, options.stores, options.whole).items():
            if name not in rows:
                rows[name] = measure(opened, config, texts, options)
                keep({})
            one = rows[name]
            sizes = "".join(
                f"{one[key] / 1e6:{room}.2f}" for key, room in (("bytes", 9), ("grown", 9), ("elsewhere", 10))
            )
            print(
                f"{name:22}{one['loss']:8.3f}{one['needle']:8.2f}{one['key_value']:8.2f}{sizes}"
                f"{one['prefill_seconds']:8.2f}{one['ms_a_token']:9.1f}",
                flush=True,
            )
    peaks = training(options.training, options.training_width)
    for context, bytes_of in peaks.items():
        whole, pieces = bytes_of["whole"] / 1e6, bytes_of["pieces"] / 1e6
        print(f"training at {context}: peak {whole:.0f} MB, in pieces {pieces:.0f} MB")
    keep(peaks)


if __name__ == "__main__":
    main(sys.argv[1:])
