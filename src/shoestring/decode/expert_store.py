"""Experts on less memory: their weights lie on disk, and a few of each layer in memory, as a policy chooses."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn

from shoestring.budget.units import show
from shoestring.config import Choice, Pick
from shoestring.contract.experts import ExpertLayer, ExpertsAsked
from shoestring.decode.cache_budget import amount_of
from shoestring.decode.expert_file import ExpertFile
from shoestring.decode.expert_policy import ExpertName, ExpertPolicy
from shoestring.errors import UsageError

POLICY = Pick("decode", "expert policy", default="lru")


@dataclass(frozen=True)
class ExpertConfig:
    """Where the experts of a model lie.

    memory: that those in memory may take, as 64MiB; or the share of each layer's experts, as 25%; empty: all lie in memory.
    policy: which are in memory, and which are fetched ahead.
    folder: where the file with all of them lies; empty: the system's folder for temporary files.
    """

    memory: str = ""
    policy: Annotated[Choice, POLICY] = field(default_factory=POLICY.choice)
    folder: str = ""

    def __post_init__(self) -> None:
        if self.memory:
            amount_of(self.memory)
        elif self.folder or self.policy != POLICY.choice():
            raise ValueError(
                "policy and folder are of experts that do not all lie in memory: set memory, to 64MiB or 25% say"
            )


class _Slots:
    """The room of one layer: a few experts in memory.

    matrices: of each slot. slots: of each expert that is held, or on its way, its slot. coming: what is on its way.
    last: of each expert, the pass that last asked for it. ahead: those that were fetched ahead and not asked for since.
    """

    def __init__(self, count: int, experts: int, shapes: Sequence[torch.Size], like: Tensor) -> None:
        self.matrices = [tuple(like.new_empty(shape) for shape in shapes) for _ in range(count)]
        self.free = list(range(count))
        self.slots: dict[int, int] = {}
        self.coming: dict[int, Future[int]] = {}
        self.last = [-1] * experts
        self.ahead: set[int] = set()

    def pair(self, expert: int) -> tuple[Tensor, Tensor]:
        first, second = self.matrices[self.slots[expert]]
        return first, second


class ExpertStore:
    """The `ExpertSource` of a model: it keeps to its memory, and counts.

    Every layer has room for as many of its experts as the memory divides into, at least one. An expert that is asked and not there
    is read from the file; one thread beside reads those of the pass that come next, and those that the policy fetches ahead. The
    text is the one that the model writes with all experts in memory, but for the last bits of its numbers.

    Not counted as its memory: the pages of the file that the system keeps for its next reader and gives up when it needs them.
    The model is opened whole before its experts are put away.

    layers: in order. They give their weights away. config: with a memory.
    Raises: UsageError where the memory is not enough for one expert of each layer, with the least that is.
    """

    def __init__(self, layers: Sequence[ExpertLayer], config: ExpertConfig) -> None:
        self.policy: ExpertPolicy = config.policy.build()
        self.policy.know(layers)
        self.asked = self.found = self.fetched = self.useful = self.read = 0
        """Experts that passes asked for; those of them that were in memory or on their way; fetched ahead; of those, asked for
        before they left; bytes read from the file."""
        self.waited = 0.0
        """Seconds that passes waited for the file."""
        self._pass = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="experts")
        share, memory = amount_of(config.memory)
        sizes = [layer.expert_bytes for layer in layers]
        rooms = _rooms([layer.experts for layer in layers], sizes, share, memory)
        self._file = ExpertFile(config.folder)
        self._layers: list[_Slots] = []
        for number, (layer, room) in enumerate(zip(layers, rooms, strict=True)):
            stacks = layer.put_away(self, number)
            self._file.add(stacks)
            self._layers.append(_Slots(room, layer.experts, [stack[0].shape for stack in stacks], stacks[0]))
        self.memory = sum(room * size for room, size in zip(rooms, sizes, strict=True))
        """Bytes of the experts in memory, at most."""
        self.whole = sum(layer.experts * size for layer, size in zip(layers, sizes, strict=True))
        """Bytes of all."""

    def take(self, layer: int, called: ExpertsAsked) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """As `ExpertSource.take`."""
        if layer == 0:
            self._pass += 1
        here, asked = self._layers[layer], called.experts
        self.asked += len(asked)
        there = [expert for expert in asked if expert in here.slots]
        self.found += len(there)
        self.useful += len(here.ahead & set(there))
        here.ahead.clear()
        for expert in asked:
            here.last[expert] = self._pass
        missing = [expert for expert in asked if expert not in here.slots]
        waiting = set(asked)
        for expert in missing:
            if not self._fetch(layer, expert, waiting):
                break
        for name in self.policy.ahead(layer, called):
            self._fetch_ahead(name, layer)
        for expert in [*there, *missing]:
            if expert not in here.slots:
                self._fetch(layer, expert, waiting, force=True)
            self._wait(here, expert)
            yield expert, here.pair(expert)
            waiting.discard(expert)

    def line(self, tokens: int, seconds: float) -> str:
        """What it came to. tokens: that were written, in so many seconds."""
        share = self.found / self.asked if self.asked else 0.0
        return (
            f"experts: {share:.1%} of {self.asked:,} asked for were in memory, {self.useful:,} of {self.fetched:,} fetched ahead "
            f"were asked for; {show('bytes', self.read)} read, {self.waited:.2f} s waited for; "
            f"{show('bytes', self.memory)} of {show('bytes', self.whole)} in memory; "
            f"{tokens / seconds if seconds else 0:.1f} tokens/s"
        )

    def _fetch(self, layer: int, expert: int, waiting: set[int], *, force: bool = False) -> bool:
        """Have an expert come; False, and nothing, where all that could leave are waited for. force: one of those leaves then."""
        here = self._layers[layer]
        if not here.free:
            held = list(here.slots)
            can = [one for one in held if one not in waiting]
            if not can and not force:
                return False
            self._leave(layer, can or held)
        slot = here.slots[expert] = here.free.pop()
        here.coming[expert] = self._thread.submit(self._file.read, layer, expert, here.matrices[slot])
        return True

    def _fetch_ahead(self, name: ExpertName, now: int) -> None:
        here = self._layers[name.layer]
        if name.expert in here.slots or name.layer == now or len(here.ahead) >= len(here.matrices):
            return
        # those that were fetched ahead themselves do not make room for each other
        if self._fetch(name.layer, name.expert, set(here.ahead)):
            here.ahead.add(name.expert)
            self.fetched += 1

    def _leave(self, layer: int, held: Sequence[int]) -> None:
        here = self._layers[layer]
        gone = self.policy.leave(layer, held, [here.last[one] for one in held])
        self._wait(here, gone)
        here.free.append(here.slots.pop(gone))
        here.ahead.discard(gone)

    def _wait(self, here: _Slots, expert: int) -> None:
        coming = here.coming.pop(expert, None)
        if coming is not None:
            began = time.perf_counter()
            self.read += coming.result()
            self.waited += time.perf_counter() - began


def put_experts_away(model: object, config: ExpertConfig) -> ExpertStore | None:
    """The store of a model's experts, which leave its memory; None, and nothing, where the configuration has no memory for them.

    Raises: UsageError where the model has no experts that can be put away.
    """
    if not config.memory:
        return None
    modules = model.modules() if isinstance(model, nn.Module) else ()
    layers = [module for module in modules if isinstance(module, ExpertLayer)]
    if not layers:
        raise UsageError("experts.memory: this model has no layers with experts")
    return ExpertStore(layers, config)


def _rooms(experts: Sequence[int], sizes: Sequence[int], share: float | None, memory: float) -> list[int]:
    """How many experts of each layer are in memory. Raises: UsageError where they are less than one."""
    if share is not None:
        return [max(1, int(share * count)) for count in experts]
    if sum(sizes) > memory:
        raise UsageError(
            f"experts.memory: {show('bytes', int(memory))} are too few: one expert of each layer takes {show('bytes', sum(sizes))}"
        )
    rooms = [1] * len(experts)
    left = memory - sum(sizes)
    for _ in range(max(experts)):
        for layer, size in enumerate(sizes):
            if rooms[layer] < experts[layer] and size <= left:
                rooms[layer] += 1
                left -= size
    return rooms
