"""Ours beside kvpress: the tokens that stay, the loss after them, seconds, and bytes by which each process grows.

Each of --policies is one of ours that kvpress has too. Both work in transformers, with the same weights in float32: they read the
beginning of a text whole, give up all but --share of it, and then read the end a token at a time, as what is written is. Told are
the share of kept tokens that are the same, of all layers and heads; the loss on the end; seconds of reading the beginning;
milliseconds a token; and by how much the process grew. `engine` is the same policy in our own engine, where memory is fixed from
the start: it gives tokens up on the way, so others stay. Each runs in a process of its own: nothing that another freed is taken for
its own.

    pip install kvpress
    python bench/cache_peers.py --length 2048 --json cache-peers.json
"""

import argparse
import importlib.util
import json
import multiprocessing
import queue
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from caches import HERE, anonymous, documents, score
from torch.nn import functional as F

from shoestring import atomic
from shoestring.base import open_model
from shoestring.budget.machine import probe
from shoestring.config import build
from shoestring.decode.cache_budget import CacheConfig
from shoestring.decode.transformers_cache import cache
from shoestring.errors import UsageError
from shoestring.model.hf import to_transformers
from shoestring.train.run_folder import environment

PRESSES = {
    "window": ("StreamingLLMPress", {"n_sink": 4}),
    "keydiff": ("KeyDiffPress", {}),
    "snapkv": ("SnapKVPress", {"window_size": 32}),
    "h2o": ("ObservedAttentionPress", {}),
    "random": ("RandomPress", {}),
}
"""What of kvpress does as a policy of ours, with options that make both the same where that can be."""

Kept = dict[int, Any]
"""By layer: [Hk, count] places of ours, or [Hk, S] scores of theirs."""


def ours(place: str, policy: str, text: Sequence[int], last: int, share: float) -> dict[str, Any]:
    """A text read by transformers with our cache. Its `kept` are the tokens that stay of the beginning, by layer."""
    model: Any = to_transformers(open_model(place).model)  # type: ignore[arg-type]
    held: Any = cache(model, policy, budget=f"{100 * share}%", stride=last)
    found, kept = read(model, held, text, last, nullcontext())
    return {"kept": kept, **found}


def engine(place: str, policy: str, text: Sequence[int], last: int, share: float) -> dict[str, Any]:
    """A text read by the engine's store."""
    config = build(CacheConfig, {"budget": f"{100 * share}%", "policy": policy})
    found = score(open_model(place), config, text, last, 512)
    return {name: found[name] for name in ("loss", "prefill_seconds", "ms_a_token", "grown")}


def read(
    model: Any, held: Any, text: Sequence[int], last: int, within: AbstractContextManager[Any]
) -> tuple[dict[str, float], Kept]:
    """(what is told, positions of a cache of ours after the beginning, which is read in `within`)."""
    ids, prompt, losses = torch.tensor([list(text)]), len(text) - last, list[torch.Tensor]()
    before, began = anonymous(), time.perf_counter()
    with within:
        # kvpress 0.5.5 is of a time when layers were told `cache_position`: given here, they pass it on
        model(ids[:, :prompt], past_key_values=held, logits_to_keep=1, cache_position=torch.arange(prompt))
    prefill, grown = time.perf_counter() - began, anonymous() - before
    kept = {at: one.positions[0].tolist() for at, one in enumerate(held.layers) if hasattr(one, "positions")}
    began = time.perf_counter()
    for at in range(prompt, len(text) - 1):
        logits = model(ids[:, at : at + 1], past_key_values=held, position_ids=torch.tensor([[at]])).logits
        losses.append(F.cross_entropy(logits[0, -1], ids[0, at + 1]))
    after = time.perf_counter() - began
    figures = {
        "loss": float(torch.stack(losses).mean()),
        "prefill_seconds": prefill,
        "ms_a_token": 1e3 * after / len(losses),
        "grown": grown,
    }
    return figures, kept


def theirs(place: str, policy: str, text: Sequence[int], last: int, share: float) -> dict[str, Any]:
    """The same text read by transformers under kvpress. Its `scores` are those by which it chooses, by layer."""
    import kvpress
    from transformers import DynamicCache

    name, options = PRESSES[policy]
    model: Any = to_transformers(open_model(place).model)  # type: ignore[arg-type]
    if policy == "h2o":
        model.set_attn_implementation("eager")
    press = getattr(kvpress, name)(compression_ratio=1 - share, **options)
    scores, score = Kept(), press.score

    def noting(module: Any, *given: Any, **more: Any) -> torch.Tensor:
        scores[module.layer_idx] = found = score(module, *given, **more)
        return found

    press.score = noting
    found, _ = read(model, DynamicCache(), text, last, press(model))
    return {"scores": {layer: one[0].tolist() for layer, one in scores.items()}, **found}


def alone(way: Any, answer: Any, threads: int, *given: Any) -> None:
    """One way, in a process of its own."""
    torch.set_num_threads(threads)
    with torch.inference_mode():
        answer.put(way(*given))


def measured(way: Any, *given: Any) -> dict[str, Any]:
    """What `way` tells, in a process of its own."""
    made = multiprocessing.get_context("spawn")
    answer = made.Queue()
    one = made.Process(target=alone, args=(way, answer, torch.get_num_threads(), *given))
    one.start()
    while True:
        try:
            found: dict[str, Any] = answer.get(timeout=2)
            break
        except queue.Empty:
            if one.exitcode is not None:
                raise SystemExit(f"{way.__name__} ended with status {one.exitcode}") from None
    one.join()
    return found


def agreement(kept: Kept, scores: Kept) -> float:
    """The share of places that stay in ours which stay in theirs, where as many stay; equal scores count as well."""
    same = all_ = 0
    for layer, heads in kept.items():
        for head, places in enumerate(heads):
            theirs = torch.tensor(scores[layer][head])
            same += int((theirs[places] >= theirs.topk(len(places)).values[-1]).sum())
            all_ += len(places)
    return same / all_


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", default="smollm2", help="a model, as `shoestring generate` takes it")
    parser.add_argument("--corpus", type=Path, default=HERE.parent / "docs", help="a folder of long *.md texts")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--last", type=int, default=128, help="tokens of the end")
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--policies", nargs="*", default=list(PRESSES), choices=PRESSES)
    parser.add_argument("--smallest", action="store_true", help="does it run? nothing that it prints is a measurement")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(words)
    if importlib.util.find_spec("kvpress") is None:
        if not options.smallest:
            raise UsageError("this needs kvpress: pip install kvpress")
        print("kvpress is not installed: only ours is run")
    if options.smallest:
        options.length, options.last, options.policies = 160, 8, options.policies[:1]
    (text,) = documents(open_model(options.place), options.corpus, options.length, 1)
    results = dict[str, Any]()
    print(f"{'':22}{'same':>7}{'loss':>8}{'read s':>8}{'ms/token':>9}{'grown MB':>9}")
    there = importlib.util.find_spec("kvpress") is not None
    for policy in options.policies:
        given = (options.place, policy, text, options.last, options.share)
        sides = {"ours": measured(ours, *given), "engine": measured(engine, *given)}
        kept, same = sides["ours"].pop("kept"), None
        if there:
            sides["kvpress"] = measured(theirs, *given)
            same = agreement(kept, sides["kvpress"].pop("scores"))
        for side, one in sides.items():
            told = f"{same:7.3f}" if side == "kvpress" else " " * 7
            print(
                f"{policy + ', ' + side:22}{told}{one['loss']:8.3f}{one['prefill_seconds']:8.2f}"
                f"{one['ms_a_token']:9.1f}{one['grown'] / 1e6:9.1f}",
                flush=True,
            )
        results[policy] = {"same": same, **sides}
    if options.json:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        about = {"settings": settings, "environment": environment(probe())}
        atomic.write_text(options.json, json.dumps({**about, "policies": results}))


if __name__ == "__main__":
    main(sys.argv[1:])
