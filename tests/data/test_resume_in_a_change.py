"""A stream that is cut off in the middle of a change of mixture goes on exactly: every mixture with every packing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shoestring.config import Choice
from shoestring.contract.batch import Batch
from shoestring.data import TokenStore, Windows
from shoestring.data.length import Shaped
from shoestring.data.mixed import Mixed
from shoestring.data.mixture import Domain
from shoestring.data.stream import Stream
from shoestring.data.windows import BatchSource
from shoestring.method import methods

CONTEXT, ROWS, STEPS = 8, 4, 12
CHECKPOINT, KILL = 5, 8
"""Steps: what was read from the one to the other is read again."""
NAMES = ("code", "prose", "talk")

MIXTURES: dict[str, dict[str, Any]] = {
    "fixed": {"weights": {"code": 1, "talk": 3}},
    "dynamic_loading": {"reference": {"code": 2.0, "prose": 2.5, "talk": 1.0}},
    "ramp": {"end": {"talk": 1}, "begin": 0.2, "finish": 0.8},
    "phases": {"until": (0.5,), "weights": ({"code": 1, "prose": 1}, {"code": 1, "talk": 1})},
    "online_schedule": {"file": "WEIGHTS"},
    "replay": {"old": ("code",), "recover": 0.1},
}

Make = Callable[[TokenStore], BatchSource]


def windows(packing: Any) -> Make:
    return lambda store: Windows(store, CONTEXT, 3, packing)


def packing(name: str, **options: Any) -> Make:
    return lambda store: Choice.of("data", name, kind="packing", **options).build(store, CONTEXT, 3)


PACKINGS: dict[str, Make] = {
    "stream": windows("stream"),
    "isolated": windows("isolated"),
    "whole": windows("whole"),
    "histogram": packing("histogram", weigh="documents"),
    "sorted_batches": packing("sorted_batches", group=2),
    "related_batches": packing("related_batches", group=2, dimensions=8),
}


VARYING = {"sorted_batches", "related_batches"}
"""Packings whose rows are as wide as the longest: those of several sources can be joined where documents are of one length."""


def stores_of(name: str) -> list[TokenStore]:
    generator = np.random.default_rng(0)
    counts = (30, 9, 5)
    lengths = [generator.integers(CONTEXT if name in VARYING else 2, CONTEXT + 1, count) for count in counts]
    return [
        TokenStore.of([generator.integers(10 * place, 10 * place + 9, size).tolist() for size in own], 99)
        for place, own in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def made() -> dict[str, list[BatchSource]]:
    """Sources are pure, so that all tests may share them; mixtures and streams are made anew."""
    return {name: [make(store) for store in stores_of(name)] for name, make in PACKINGS.items()}


def step_of(stream: Stream, step: int, weights: Path) -> Batch:
    """One step of a run that hears every second, and whose file of weights is changed half-way."""
    weights.write_text(json.dumps({"prose": 1, "talk": 2} if step < STEPS // 2 else {"code": 1}))
    batch = stream.take(step * ROWS, ROWS, step / STEPS)
    if step % 2:
        stream.hear(step / STEPS, {"code": 3 + step / 20, "prose": 2.4, "talk": 2.0 + np.sin(step)})
    return batch


def alike(one: Batch, other: Batch) -> bool:
    pairs = [*zip(one.inputs, other.inputs, strict=True), (one.targets, other.targets), (one.weights, other.weights)]
    pairs += [(one.extra["domain"], other.extra["domain"])]
    return all((a is None and b is None) or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def test_every_mixture_and_packing_is_here() -> None:
    assert {card.name for card in methods("data", "mixture")} == set(MIXTURES)
    assert {card.name for card in methods("data", "packing")} == set(PACKINGS) - {"stream", "isolated", "whole"}


@pytest.mark.parametrize(
    ("rows", "length"), [*((name, None) for name in PACKINGS), ("stream", 4), ("isolated", 4), ("histogram", 4)]
)
@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_run_cut_off_in_a_change_goes_on_exactly(
    mixture: str, rows: str, length: int | None, made: dict[str, list[BatchSource]], tmp_path: Path
) -> None:
    weights = tmp_path / "weights.json"
    options = {**MIXTURES[mixture], **({"file": str(weights)} if mixture == "online_schedule" else {})}
    domains = [Domain(name, len(store)) for name, store in zip(NAMES, stores_of(rows), strict=True)]

    def begun() -> tuple[Mixed, Stream]:
        whole = Mixed(NAMES, made[rows], Choice.of("data", mixture, kind="mixture", **options).build(domains), 5)
        if length is None:
            return whole, whole
        stages = Choice.of("data", "length_stages", kind="length", stages=(length, CONTEXT), until=(0.5,))
        return whole, Shaped(whole, stages.build(CONTEXT), ROWS)

    unbroken, stream = begun()
    expected, shares = [], []
    for step in range(STEPS):
        shares.append(unbroken.mixture.weights(step / STEPS).tolist())
        expected.append(step_of(stream, step, weights))
    assert (shares[CHECKPOINT - 1] == shares[-3]) == (mixture == "fixed")

    _, stream = begun()
    found = [step_of(stream, step, weights) for step in range(CHECKPOINT)]
    kept = json.dumps(stream.state())
    for step in range(CHECKPOINT, KILL):  # what follows the checkpoint is lost
        step_of(stream, step, weights)
    _, stream = begun()
    stream.restore(json.loads(kept))
    found += [step_of(stream, step, weights) for step in range(CHECKPOINT, STEPS)]
    assert all(alike(one, other) for one, other in zip(expected, found, strict=True))
