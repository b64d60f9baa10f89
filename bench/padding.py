"""The share of places that have no target, padding nearly all of them, by how documents are laid in rows; and targets a second.

The documents are the clean ones of `three_domains.py`, in bytes. 'one a row' is a document a row, all rows as wide as the context.
Of each way a whole epoch is laid out in batches of --rows rows. With --rounds a small model reads batches of each way in turns,
forwards and backwards, and the median of targets a second is told: documents that keep apart have a mask, and rows that are sorted
are shorter.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from three_domains import NAMES, clean, store_of
from torch.nn import functional as F

from shoestring import atomic
from shoestring.config import Choice
from shoestring.contract.batch import Batch
from shoestring.data.pieces import Pieces
from shoestring.data.store import TokenStore
from shoestring.data.windows import Windows
from shoestring.model import ModelConfig, Transformer


class OneARow:
    """A document, or a piece of one that is longer than a row, a row."""

    def __init__(self, store: TokenStore, context: int) -> None:
        self.pieces, self.context = Pieces(store, context), context

    def __len__(self) -> int:
        return len(self.pieces)

    def batch(self, start: int, count: int) -> Batch:
        return self.pieces.batch([np.array([row]) for row in range(start, start + count)], self.context, weigh=False)


WAYS: dict[str, Callable[[TokenStore, int], Any]] = {
    "stream": lambda store, context: Windows(store, context, packing="stream"),
    "isolated": lambda store, context: Windows(store, context, packing="isolated"),
    "whole": lambda store, context: Windows(store, context, packing="whole"),
    "histogram": lambda store, context: Choice.of("data", "histogram", kind="packing").build(store, context),
    "sorted_batches": lambda store, context: Choice.of("data", "sorted_batches", kind="packing").build(store, context),
    "related_batches": lambda store, context: Choice.of("data", "related_batches", kind="packing").build(
        store, context
    ),
    "one a row": OneARow,
}


def laid(source: Any, rows: int) -> dict[str, int]:
    """Places and targets of an epoch."""
    places = targets = 0
    for start in range(0, len(source), rows):
        batch = source.batch(start, min(rows, len(source) - start))
        places += batch.targets.numel()
        targets += batch.tokens
    return {"places": places, "targets": targets}


def paces(sources: Mapping[str, Any], rows: int, rounds: int, model: Transformer) -> dict[str, float]:
    """Targets a second of each way, the median over rounds in which they take turns; the first is not counted."""
    found: dict[str, list[float]] = {name: [] for name in sources}
    for turn in range(rounds + 1):
        for name, source in sources.items():
            batch = source.batch(turn * rows % (len(source) - rows + 1), rows)
            began = time.perf_counter()
            logits = model.read(batch.inputs).logits()
            F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten().clamp_min(0)).backward()
            found[name].append(batch.tokens / (time.perf_counter() - began))
            model.zero_grad()
    return {name: median(each[1:]) for name, each in found.items()}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=16, help="of a batch")
    parser.add_argument("--rounds", type=int, default=0, help="of timed batches, default none")
    parser.add_argument("--timed-rows", type=int, default=4, help="of a batch that is timed")
    parser.add_argument("--documents", type=int, default=250, help="of each domain (default 250)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--smallest", action="store_true", help="8 documents of each domain")
    options = parser.parse_args(words)
    count = 8 if options.smallest else options.documents
    texts = [text for name in NAMES for text in clean()[name][:count]]
    store, found = store_of(texts), dict[str, dict[str, float]]()
    sources = {name: make(store, options.context) for name, make in WAYS.items()}
    for name, source in sources.items():
        one = laid(source, options.rows)
        found[name] = {**one, "share": 1 - one["targets"] / one["places"]}
        print(f"{name:16} {found[name]['share']:6.1%} of {one['places']:,} places have no target", flush=True)
    if options.rounds or options.smallest:
        torch.manual_seed(0)
        model = Transformer(ModelConfig(layers=2, width=128, heads=4, vocabulary=257, context=options.context))
        rows, rounds = (1, 1) if options.smallest else (options.timed_rows, options.rounds)
        for name, pace in paces(sources, rows, rounds, model).items():
            found[name]["targets_a_second"] = pace
            print(f"{name:16} {pace:9,.0f} targets a second", flush=True)
    if options.json:
        settings = {"context": options.context, "rows": options.rows, "documents": len(texts), "tokens": len(store)}
        atomic.write_text(options.json, json.dumps({"settings": settings, "ways": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
