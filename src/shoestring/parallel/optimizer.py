"""Optimisers of a sharded model: by shards where they may, on whole matrices where they must; the state is divided either way."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shoestring.errors import ShoestringError, UsageError
from shoestring.optim.composite import Composite
from shoestring.optim.partition import Assignment, Partition, optimizer_class
from shoestring.optim.state import flatten_state, restore_state
from shoestring.parallel.json_gather import gather_json
from shoestring.parallel.region import Part, as_whole
from shoestring.parallel.sharding import Sharded, ShardedParameter
from shoestring.parallel.stored_tensors import part_of

log = logging.getLogger(__name__)

Kind = Literal["same", "shard", "whole"]
"""How a parameter is stepped: as it is, by this process's part, or as a whole by one process."""


class ShardedOptimizer(Composite):
    """The optimisers of a partition, for the parts of the parameters that this process has.

    An optimiser that says `elementwise` steps each process's shards where they are. One that says `stackwise` steps a process's
    experts where they are: each is a matrix of its own. Any other one sees whole parameters: each divided parameter has an owner,
    the process with the least to own so far. Before a step its gradient is gathered, the owner steps it, with a state that no other
    process has, and broadcasts the new weights. So any optimiser does, and none knows of it. The owner keeps a copy of the whole
    weights that it owns.

    sharded: the model. claimed: who optimises which parameters, made of the same model before it was divided.
    Raises: UsageError for optimisers that keep weights in their state, or ask for second derivatives.
    """

    def __init__(self, sharded: Sharded, claimed: Partition) -> None:
        self.sharded = sharded
        self.owners = _owners(sharded, claimed)
        self.kinds: dict[str, Kind] = {}
        self.stand_ins: dict[str, nn.Parameter] = {}
        shares = tuple(self._stood_in(share) for share in claimed.shares)
        super().__init__(*Partition(shares).build().parts)
        self._elsewhere = claimed.build().step_flops() - super().step_flops()
        self.copy_weights()

    def _stood_in(self, share: Assignment) -> Assignment:
        """The share, what this process has in place of each of its parameters."""
        kind = optimizer_class(share.recipe)
        if getattr(kind, "state_holds_weights", hasattr(kind, "eval")) or hasattr(kind, "wants_curvature"):
            raise UsageError(
                f"{share.name} keeps weights in its state or asks for second derivatives: it does not go with [parallel]"
            )
        members = []
        for member in share.members:
            one = self.sharded.parameters[member.name]
            self.kinds[member.name] = how = _kind(one, share)
            stand_in = one.parameter
            if how == "shard":
                stand_in = nn.Parameter(one.local())
            elif how == "whole":
                own = self.owners[member.name] == self.sharded.rank
                place = one.parameter.device if own else "meta"
                stand_in = nn.Parameter(torch.empty(one.shape, dtype=one.parameter.dtype, device=place))
            for name, value in vars(member.parameter).items():  # `row_blocks`, say
                if how == "whole":
                    setattr(stand_in, name, value)
            self.stand_ins[member.name] = stand_in
            members.append(replace(member, parameter=stand_in))
        return replace(share, members=tuple(members))

    def _wholes(self) -> list[ShardedParameter]:
        return [self.sharded.parameters[name] for name, kind in self.kinds.items() if kind == "whole"]

    def _owned(self, one: ShardedParameter) -> bool:
        return self.owners[one.name] == self.sharded.rank

    @torch.no_grad()
    def copy_weights(self) -> None:
        """Take the whole weights from the model, where this process owns them. All processes call it together."""
        for one in self._wholes():
            whole = one.whole(one.parameter.detach())
            if self._owned(one):
                self.stand_ins[one.name].copy_(whole)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """As `Composite.step`. All processes call it together."""
        moved = [one for one in self._wholes() if one.parameter.grad is not None]
        for one in moved:
            gradient = one.parameter.grad
            assert gradient is not None
            whole = one.whole(gradient)
            if self._owned(one):
                self.stand_ins[one.name].grad = whole
        for name, kind in self.kinds.items():
            if kind == "shard":
                self.stand_ins[name].grad = self.sharded.parameters[name].local_gradient()
        super().step(closure)
        for one in moved:  # one after the other: there is never more than one whole matrix beside those that are owned
            own = self.stand_ins[one.name]
            whole = own.detach() if self._owned(one) else torch.empty_like(own, device=one.parameter.device)
            dist.broadcast(whole, self.owners[one.name])
            one.put(whole)

    def anchor(self) -> None:
        """As `Composite.anchor`, of what this process steps."""
        super().anchor()
        for part in self.parts:
            for stand_in in [each for each in part.state if each.is_meta]:  # another process has these weights
                del part.state[stand_in]

    def step_flops(self) -> int:
        """Operations of one step, in whichever process, each once."""
        return super().step_flops() + self._elsewhere

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for one in self.sharded.parameters.values():
            one.parameter.grad = None

    def whole_bytes(self) -> int:
        """Bytes that this process receives in each step because some optimisers see whole matrices: gradients gathered, and
        weights that others own."""
        received = 0
        for one in self._wholes():
            size = one.shape.numel() * one.parameter.element_size()
            received += size - size // one.shards
            received += 0 if self._owned(one) else size
        return received

    def describe(self) -> str:
        """What a process holds, and what dividing the optimisers costs, in a line."""
        wholes = self._wholes()
        own = sum(self._owned(one) for one in wholes)
        parameters = self.sharded.parameters.values()
        held = f"{sum(one.local().numel() for one in parameters):,} of {sum(one.shape.numel() for one in parameters):,}"
        if not wholes:
            return f"this process holds {held} parameters; every optimiser steps the part that its process has: nothing is gathered"
        return (
            f"this process holds {held} parameters; {len(wholes)} matrices are gathered whole for their optimiser, {own} of them "
            f"in this process: it receives {self.whole_bytes():,} bytes a step for that"
        )

    def state_here(self) -> tuple[dict[str, Part], dict[str, Any]]:
        """(what this process is to keep of the state; the record of the whole state, as `flatten_state` has it of one process).
        All processes call it together, and each tensor is kept once.
        """
        mine, record = flatten_state(self)
        kept: dict[str, Part] = {}
        for key, tensor in mine.items():
            name = key.rpartition(".")[0]
            one, kind = self.sharded.parameters[name], self.kinds[name]
            if kind == "shard" and tensor.ndim and tensor.shape == one.local().shape:
                if name in self.sharded.written_here:
                    kept[key] = tensor, tuple(one.shape), one.region
            elif kind == "whole" or (name in self.sharded.written_here and one.first):
                kept[key] = as_whole(tensor)
        signatures = {key: [str(one.dtype).removeprefix("torch."), *shape] for key, (one, shape, _) in kept.items()}
        tensors, values = dict[str, Any](), dict[str, Any]()
        for theirs in gather_json([signatures, record["values"]]):
            tensors = {**theirs[0], **tensors}
            values = {**theirs[1], **values}
        shapes = [{name: list(self.sharded.parameters[name].shape) for name in names} for names in record["parameters"]]
        return kept, {**record, "values": values, "parameters": shapes, "tensors": tensors}

    def take_state(self, tensors: Mapping[str, Tensor], record: dict[str, Any]) -> None:
        """Take this process's part of a state that one process, or any number of them, has kept; then the weights.

        Raises: ShoestringError where it is of other optimisers or parameters.
        """
        lost = {"values", "parameters", "tensors"} - record.keys()
        if lost:
            raise ShoestringError(f"the record of the optimiser state is damaged: it has no {', '.join(sorted(lost))}")
        own: dict[str, Tensor] = {}
        for key, signature in record["tensors"].items():
            name = key.rpartition(".")[0]
            kind = self.kinds.get(name, "same")
            if kind == "whole" and self.owners[name] != self.sharded.rank:
                continue
            if key not in tensors:
                raise ShoestringError(f"the saved optimiser state does not fit: {key} is not in it")
            one = self.sharded.parameters.get(name)
            if kind == "shard" and one is not None and signature[1:] == list(one.shape):
                own[key] = part_of(tensors, key, one.region)
            else:
                own[key] = tensors[key]
        values = {
            name: value
            for name, value in record["values"].items()
            if self.kinds.get(name) != "whole" or self.owners[name] == self.sharded.rank
        }
        parameters = [
            {
                name: list(self.stand_ins[name].shape) if self._fits(name, shape) else shape
                for name, shape in group.items()
            }
            for group in record["parameters"]
        ]
        signatures = {key: [str(tensor.dtype).removeprefix("torch."), *tensor.shape] for key, tensor in own.items()}
        local = {**record, "values": values, "parameters": parameters, "tensors": signatures}
        restore_state(self, own, local)
        self.copy_weights()

    def _fits(self, name: str, shape: list[int]) -> bool:
        return name in self.stand_ins and list(self.sharded.parameters[name].shape) == list(shape)


def _kind(one: ShardedParameter, share: Assignment) -> Kind:
    if not one.divided:
        return "same"
    kind = optimizer_class(share.recipe)
    by_matrix = one.experts is not None and getattr(kind, "stackwise", False)
    return "shard" if by_matrix or getattr(kind, "elementwise", False) else "whole"


def _owners(sharded: Sharded, claimed: Partition) -> dict[str, int]:
    """The rank that steps each parameter that is seen whole: the largest first, each to whoever has the least by then."""
    wholes = [
        sharded.parameters[member.name]
        for share in claimed.shares
        for member in share.members
        if _kind(sharded.parameters[member.name], share) == "whole"
    ]
    load = [0] * sharded.layout.processes
    owners = {}
    for one in sorted(wholes, key=lambda one: -one.shape.numel()):
        rank = load.index(min(load))
        owners[one.name] = rank
        load[rank] += one.shape.numel()
    return owners
