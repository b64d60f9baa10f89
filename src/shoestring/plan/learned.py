"""What a ladder of runs has taught plans: the law of size and tokens, the best batch and the best rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from shoestring.errors import ShoestringError
from shoestring.plan.choice import choose
from shoestring.plan.law import Fitted
from shoestring.plan.laws.batch_size import BatchSize
from shoestring.plan.laws.best_rate import BestRate
from shoestring.plan.memory import kept
from shoestring.plan.outlook import LAWS
from shoestring.plan.runs_table import RunsTable, corpus_of, kind_of

LEAST_RUNS, LEAST_SIZES, LEAST_TOKENS = 8, 3, 3
"""The fewest cells of a ladder, and sizes and numbers of tokens among them, that plans are made by."""

SAME_SIZE, SAME_TOKENS = 0.02, 0.1
"""Relative differences that are one cell of a ladder."""

RESAMPLES, RUNGS = 60, 3
"""Of the fit, which a plan waits for."""


@dataclass(frozen=True)
class Learned:
    """What plans are made by.

    law: of size and tokens.
    batch: the best tokens of a step by training tokens; None where the runs do not tell.
    rate: the best learning rate by training tokens, of `optimizer`; None where the runs do not tell.
    optimizer: that the runs had.
    corpus: that they were made on, as a configuration names it.
    own: whether it is the corpus of the plan: else losses are those of another text, and only what is best is taken over.
    runs: how many were learned from.
    sizes: parameters of the smallest and the largest.
    """

    law: Fitted
    batch: Fitted | None
    rate: Fitted | None
    optimizer: str
    corpus: str
    own: bool
    runs: int
    sizes: tuple[float, float]

    def describe(self) -> str:
        """The law and its runs, for a reason of one line."""
        whose = f"{self.runs} runs" if self.own else f"{self.runs} runs on {self.corpus}"
        return f"{self.law.law.formula} of {whose}"


def learned_for(store: Path, text: str) -> Learned | None:
    """What the ladders of a store teach for a text; None where there are too few runs, or no law can be fitted.

    The ladder on the text itself is taken, else the largest on another corpus with the same tokenizer and vocabulary: its losses
    are not those of this text, but which size suits how many tokens carries over.

    store: as `memory.learn` keeps it. text: as `runs_table.text_key` gives it.
    """
    try:
        stamp = store.stat().st_mtime_ns
    except OSError:
        return None
    return _learned(store, stamp, text)


@lru_cache(maxsize=8)
def _learned(store: Path, stamp: int, text: str) -> Learned | None:
    """stamp: of the store, so that new runs are seen."""
    by_text: dict[str, list[Mapping[str, Any]]] = {}
    for line in kept(store):
        if line.get("ladder") and kind_of(line["text"]) == kind_of(text):
            by_text.setdefault(line["text"], []).append(line)
    others = sorted((key for key in by_text if key != text), key=lambda key: (-len(by_text[key]), key))
    for key in [*([text] if text in by_text else []), *others]:
        found = _fitted(by_text[key], key, key == text)
        if found is not None:
            return found
    return None


def _fitted(lines: Sequence[Mapping[str, Any]], text: str, own: bool) -> Learned | None:
    names = [str(line.get("optimizer", "")) for line in lines]
    optimizer = max(sorted(set(names)), key=names.count)
    lines = [line for line, name in zip(lines, names, strict=True) if name == optimizer]
    table = RunsTable.of([dict(line["row"]) for line in lines], [str(line["run"]) for line in lines])
    if not all(table.has(name) for name in ("parameters", "tokens", "loss", "batch", "learning_rate")):
        return None
    cells = best_of_cells(table)
    if len(cells) < LEAST_RUNS or _levels(cells, "parameters") < LEAST_SIZES or _levels(cells, "tokens") < LEAST_TOKENS:
        return None
    try:
        law = choose(LAWS, cells, resamples=RESAMPLES, rungs=RUNGS)[0]
    except ShoestringError:
        return None
    sizes = cells.column("parameters")
    return Learned(
        law=law,
        batch=_law(BatchSize(along="tokens", tolerance=SAME_TOKENS), alike(table, "batch")),
        rate=_law(BestRate(tolerance=SAME_TOKENS), alike(table, "learning_rate")),
        optimizer=optimizer,
        corpus=corpus_of(text),
        own=own,
        runs=len(table),
        sizes=(float(sizes.min()), float(sizes.max())),
    )


def _law(law: BatchSize | BestRate, table: RunsTable | None) -> Fitted | None:
    if table is None:
        return None
    try:
        return law.fit(table, resamples=RESAMPLES, rungs=0)
    except ShoestringError:
        return None  # too few levels, or no minimum between its ends


def _levels(table: RunsTable, column: str) -> int:
    values = np.sort(table.column(column))
    return 1 + int((values[1:] > values[:-1] * (1 + SAME_TOKENS)).sum())


def _cells(table: RunsTable) -> list[list[int]]:
    """Runs of one size and one number of tokens."""
    found: list[list[int]] = []
    sizes, tokens = table.column("parameters"), table.column("tokens")
    for at in np.lexsort((tokens, sizes)):
        first = found[-1][0] if found else None
        if (
            first is not None
            and abs(sizes[at] / sizes[first] - 1) <= SAME_SIZE
            and abs(tokens[at] / tokens[first] - 1) <= SAME_TOKENS
        ):
            found[-1].append(int(at))
        else:
            found.append([int(at)])
    return found


def best_of_cells(table: RunsTable) -> RunsTable:
    """The run of the lowest loss of each size and number of tokens: those of a poor batch or rate say nothing of them."""
    losses = table.column("loss")
    return table.select([min(cell, key=lambda at: float(losses[at])) for cell in _cells(table)])


def alike(table: RunsTable, column: str) -> RunsTable | None:
    """The runs of cells that differ in one column, 'batch' or 'learning_rate', and are alike in the other; None where there is
    no such cell."""
    other = {"batch": "learning_rate", "learning_rate": "batch"}[column]
    values, fixed = table.column(column), table.column(other)
    chosen: list[int] = []
    for cell in _cells(table):
        if not np.isfinite(values[cell]).all() or not np.isfinite(fixed[cell]).all():
            continue
        usual = max(cell, key=lambda at: sum(math.isclose(fixed[at], fixed[one], rel_tol=SAME_TOKENS) for one in cell))
        same = [at for at in cell if math.isclose(fixed[at], fixed[usual], rel_tol=SAME_TOKENS)]
        if len(np.unique(np.round(np.log(values[same]), 2))) >= 3:
            chosen += same
    return table.select(chosen) if chosen else None
