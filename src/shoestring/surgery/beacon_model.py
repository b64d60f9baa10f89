"""A model of any kind that reads its text in windows, with beacons after each."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache as once
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Cache
from shoestring.contract.cost import Cost, Shape
from shoestring.contract.model import About, Depth, Reading
from shoestring.errors import UsageError
from shoestring.surgery.beacons import BeaconPlaces, next_places, whole_text

STATE = "beacons"
"""The attribute of a model that has its `BeaconState`."""


class BeaconState(nn.Module):
    """What a model with beacons knows of them.

    window: tokens. ratio: tokens for a beacon. ratios: those of training. context: tokens of a text. seed: of the draws.
    step: of training.
    """

    step: Tensor

    def __init__(
        self, places: BeaconPlaces, *, window: int, ratio: int, ratios: Sequence[int], context: int, seed: int
    ) -> None:
        super().__init__()
        self.places, self.window, self.ratio, self.ratios = places, window, ratio, tuple(ratios)
        self.context, self.seed = context, seed
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def chosen(self, windows: int) -> list[int]:
        """The ratio of each window: in training drawn by the seed and the step."""
        if not torch.is_grad_enabled():
            return [self.ratio] * windows
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.step))
        drawn = torch.randint(len(self.ratios), (windows,), generator=generator)
        return [self.ratios[number] for number in drawn.tolist()]

    def counted(self, shape: Shape) -> tuple[Shape, int]:
        """(the shape of a pass with its beacons, how many these are): the most there can be."""
        ratio = min(self.ratios) if shape.backward else self.ratio
        end = shape.past + shape.new
        windows = (end - 1) // self.window - max(shape.past - 1, 0) // self.window
        beacons = windows * (self.window // ratio)
        past = 0
        if shape.past:
            over = (shape.past - 1) // self.window
            past = over * (self.window // ratio) + shape.past - over * self.window
        outputs = shape.new if shape.outputs is None else shape.outputs
        return Shape(shape.rows, shape.new + beacons, past, outputs, shape.backward), beacons


class BeaconCache(Cache):
    """The state of one text: the layers' own, and how far its window is.

    memory: beacons that are held. held: tokens of the window that are.
    """

    def __init__(self, layers: Sequence[Any], room: int) -> None:
        super().__init__(layers, 1, room)
        self.memory = self.held = 0

    def settle(self, due: int, new: int) -> None:
        """Count what a pass read."""
        self.memory += due
        self.held = new if due else self.held + new
        self.lengths = [self.memory + self.held]

    def take(self, rows: Tensor) -> "BeaconCache":
        made = copy.copy(self)
        made.layers, made.lengths = [layer.take(rows) for layer in self.layers], list(self.lengths)
        return made

    def snapshot(self) -> Any:
        return super().snapshot(), self.memory, self.held

    def restore(self, snapshot: Any) -> None:
        whole, self.memory, self.held = snapshot
        super().restore(whole)


def plain(kind: type) -> Any:
    """The class that one with beacons was made of; itself, where it was made of none."""
    return kind.__dict__.get("beacons_of", kind)


@once
def with_beacons(kind: Any) -> Any:
    """A class like `kind`, which reads in windows."""

    class Beaconed(kind):
        beacons_of = kind

        @property
        def about(self) -> About:
            return replace(super().about, context=getattr(self, STATE).context)

        def read(
            self, inputs: Inputs, cache: Cache | None = None, *, tap: Sequence[str] = (), depth: Depth | None = None
        ) -> Reading:
            state: BeaconState = getattr(self, STATE)
            if inputs.documents is not None or inputs.mask is not None or inputs.positions is not None:
                raise UsageError("a model with beacons reads one text a row, token by token in order")
            if isinstance(cache, BeaconCache):
                return self._read_on(state, inputs, cache, tap, depth)
            if cache is not None:
                raise UsageError("a model with beacons has caches of its own: make one by model.new_cache")
            if inputs.length > state.context:
                raise UsageError(f"{inputs.length} tokens do not fit in a context of {state.context}")
            windows = (inputs.length - 1) // state.window
            if not windows:
                state.places.now = None
                return super().read(inputs, tap=tap, depth=depth)
            now = whole_text(inputs.length, state.window, state.chosen(windows), inputs.values.device)
            tokens = (~now.beacons).nonzero()[:, 0]
            values = inputs.values.new_zeros(inputs.rows, len(now.beacons)).index_copy(1, tokens, inputs.values)
            return _only(self._placed(state, values, now, None, tap, depth), tokens)

        def _read_on(
            self, state: BeaconState, inputs: Inputs, cache: BeaconCache, tap: Sequence[str], depth: Depth | None
        ) -> Reading:
            """A pass with a cache, in parts that each lie in a window."""
            if inputs.lengths is not None or inputs.rows != 1:
                raise UsageError("a cache with beacons holds one text")
            done, start = list[Reading](), 0
            while start < inputs.length:
                due = state.window // state.ratio if cache.held == state.window else 0
                new = min(inputs.length - start, state.window - (0 if due else cache.held))
                device = inputs.values.device
                now = next_places(cache.memory, cache.held, due, state.ratio, new, state.window, device)
                values = torch.cat((inputs.values.new_zeros(1, due), inputs.values[:, start : start + new]), 1)
                found = self._placed(state, values, now, cache, tap, depth)
                cache.settle(due, new)
                done.append(_only(found, torch.arange(due, due + new, device=device)))
                start += new
            cost = sum((each.cost for each in done[1:]), done[0].cost)
            tapped = {name: torch.cat([each.tapped[name] for each in done], 1) for name in done[0].tapped}
            return replace(done[-1], hidden=torch.cat([each.hidden for each in done], 1), cost=cost, tapped=tapped)

        def _placed(
            self, state: BeaconState, values: Tensor, now: Any, cache: Any, tap: Sequence[str], depth: Depth | None
        ) -> Reading:
            state.places.now = now
            positions = now.positions.expand(len(values), -1)
            beacons = int(now.beacons.sum())
            state.places.share = (beacons, values.shape[1])
            try:
                return super().read(Inputs(values, positions), cache, tap=tap, depth=depth)
            finally:
                if not torch.is_grad_enabled():
                    state.places.now = None

        def new_cache(self, rows: int, room: int) -> Cache:
            """As `LanguageModule.new_cache`."""
            return BeaconCache(super().new_cache(rows, 1).layers, super().about.context)

        def cost(self, shape: Shape) -> Cost:
            state: BeaconState = getattr(self, STATE)
            whole, beacons = state.counted(shape)
            before, state.places.share = state.places.share, (beacons, whole.new)
            try:
                found: Cost = super().cost(whole)
            finally:
                state.places.share = before
            return found

    Beaconed.__name__ = Beaconed.__qualname__ = f"Beaconed{kind.__name__}"
    return Beaconed


def _only(reading: Reading, tokens: Tensor) -> Reading:
    """What was read of the tokens, without the beacons."""
    tapped = {name: one[:, tokens] for name, one in reading.tapped.items()}
    return replace(reading, hidden=reading.hidden[:, tokens], tapped=tapped)
