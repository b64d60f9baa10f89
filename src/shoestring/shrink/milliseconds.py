"""How long products with packed matrices take here, what a token takes beside them, and what one takes of a model that is kept."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch

from shoestring.base import open_model
from shoestring.base.quantised_model import QuantisedTransformer
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.jobs.job import Job
from shoestring.jobs.processes import Processes
from shoestring.jobs.runner import in_order
from shoestring.lowbit import kernels
from shoestring.lowbit.grouped import GroupedEmbedding, GroupedLinear
from shoestring.lowbit.packing import grouped
from shoestring.model.outline import outline
from shoestring.model.transformer import Transformer
from shoestring.shrink.target import seconds_per_token, times_in_turns

ROUNDS = 9
COLD = 64 << 20
"""Bytes of copies of a matrix that take turns, so that none is in cache."""


class Products:
    """Times of products with one token, measured once for each shape, in the layouts for 4 and for 8 bits.

    fixed: seconds of a token beside the matrices of the layers: a packed model of the same sizes, less their products.
    Raises: UsageError for a model that is not native: others are not packed.
    """

    def __init__(self, model: LanguageModule, table_bits: int, clock: Callable[[], float] = time.perf_counter) -> None:
        if type(model) is not Transformer:
            raise UsageError(
                "a time for a token can be met for native models: the matrices of others are not packed here"
            )
        self._clock, self._known = clock, dict[tuple[int, int, int], float]()
        shapes = [tuple(one.weight.shape) for one in model.anatomy().matrices()]
        own = sum(self.seconds(rows, columns, 4) for rows, columns in shapes)
        self.fixed = max(seconds_per_token(_packed(model, table_bits), clock) - own, 0.0)

    def seconds(self, rows: int, columns: int, bits: int) -> float:
        """Of a product: codes of up to 4 bits are multiplied at 4, wider ones at 8."""
        layout = 4 if bits <= 4 else 8
        key = (rows, columns, layout)
        if key not in self._known:
            size = grouped.packed_bytes(rows, columns, layout)
            turns = [torch.zeros(size, dtype=torch.uint8) for _ in range(max(2, min(64, COLD // size)))]
            x, times = torch.ones(1, columns), list[float]()
            for turn in range(max(ROUNDS, len(turns)) + 2):
                began = self._clock()
                kernels.grouped_matmul(x, turns[turn % len(turns)], rows, columns, layout)
                times.append(self._clock() - began)
            self._known[key] = median(times[2:])
        return self._known[key]


def times_of_kept(places: Sequence[str], *, plain: bool = False, rounds: int | None = None) -> list[list[float]]:
    """The times of a token of models that are kept, in turns, by a process of its own, as they will be used: calibrating and
    training leave memory in pieces, in which SmolLM2 in 4 bits looked half as slow again.

    plain: open them in float32. rounds: in which they take turns, as `times_in_turns` has it.
    Raises: ShoestringError where that process fails.
    """
    asked = {"places": list(places), "plain": plain, "rounds": rounds}
    (made,) = in_order(Processes(), [Job("timing a token", f"{__name__}:timed_here", asked)])
    return [[float(each) for each in times] for times in made.value]


def seconds_of_kept(places: Sequence[str], *, plain: bool = False) -> list[float]:
    """The median of these times, of each model."""
    return [median(times) for times in times_of_kept(places, plain=plain)]


def timed_here(asked: dict[str, Any], _folder: Path | None) -> list[list[float]]:
    """The `Work` of it. Ensembles, which are no modules, are neither shrunk nor quantised."""
    dtype = torch.float32 if asked["plain"] else None
    models = [cast(LanguageModule, open_model(place, dtype).model) for place in asked["places"]]
    return times_in_turns(models, asked["rounds"])


@torch.no_grad()
def _packed(model: Transformer, table_bits: int) -> QuantisedTransformer:
    """A model of the same sizes with matrices of 4 bits, to be timed."""
    with outline():
        made = QuantisedTransformer(model.config)
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for one in model.anatomy().matrices():
        weight, bias = state.pop(f"{one.name}.weight"), state.pop(f"{one.name}.bias", None)
        made.set_submodule(one.name, GroupedLinear.of(grouped.rounded(weight, 4), weight.shape[1], bias))
    for name in ("embedding", "head"):
        if table_bits < 16 and f"{name}.weight" in state:
            weight = state.pop(f"{name}.weight")
            made.set_submodule(name, GroupedEmbedding.of(grouped.rounded(weight, table_bits), weight.shape[1]))
    made.load_state_dict(state, strict=False, assign=True)
    return made.ready()
