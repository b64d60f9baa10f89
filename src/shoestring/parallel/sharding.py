"""A model divided among processes: what each has of every parameter, and how it is made whole again."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModule
from shoestring.errors import ShoestringError, UsageError
from shoestring.model.blocks import Blocks
from shoestring.parallel.activation_checkpointing import checkpoint_layers, layers_of
from shoestring.parallel.context_parallel import divide_context
from shoestring.parallel.expert_parallel import divide_experts
from shoestring.parallel.layout import ParallelLayout
from shoestring.parallel.region import Region, runs_of
from shoestring.parallel.stored_tensors import part_of
from shoestring.parallel.tensor_parallel import Divided, Division, divide

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardedParameter:
    """A parameter of which this process has a part, or all.

    name: in the model.
    parameter: a DTensor where it is divided.
    shape: of the whole.
    places: (this process's place, how many) along each axis of the layout that divides it, in the order in which they cut.
    division: of its rows or columns among the processes of 'tensor'; None: it is not so divided.
    experts: the processes that divide a stack of experts' matrices along its first dimension; None: it is not so divided.
    """

    name: str
    parameter: nn.Parameter
    shape: torch.Size
    places: Mapping[str, tuple[int, int]]
    division: Division | None
    experts: DeviceMesh | None = None

    @property
    def divided(self) -> bool:
        """Whether this process has a part alone."""
        return self.experts is not None or isinstance(self.parameter, DTensor)

    @property
    def shards(self) -> int:
        """Into how many different parts it is divided."""
        return prod(count for _, count in self.places.values())

    @property
    def first(self) -> bool:
        """Whether this process has the first part."""
        return all(place == 0 for place, _ in self.places.values())

    def local(self) -> Tensor:
        """This process's part, in the parameter's own memory."""
        own = self.parameter.detach()
        return own.to_local() if isinstance(own, DTensor) else own

    def local_gradient(self) -> Tensor | None:
        """This process's part of the gradient."""
        gradient = self.parameter.grad
        return gradient.to_local() if isinstance(gradient, DTensor) else gradient

    def whole(self, part: Tensor) -> Tensor:
        """The whole of which each process gives its part, shaped like `local`; all processes call it together."""
        parameter = self.parameter
        if self.experts is not None:
            parts = [torch.empty_like(part) for _ in range(self.experts.size())]
            dist.all_gather(parts, part.contiguous(), group=self.experts.get_group())
            return torch.cat(parts)
        if isinstance(parameter, DTensor):
            if not isinstance(part, DTensor):
                part = DTensor.from_local(
                    part,
                    parameter.device_mesh,
                    parameter.placements,
                    run_check=False,
                    shape=parameter.shape,
                    stride=parameter.stride(),
                )
            part = part.full_tensor()
        if self.division is None or self.division.order is None:
            return part
        restored = torch.empty_like(part)
        restored.index_copy_(self.division.dim, self.division.order.to(part.device), part)
        return restored

    @cached_property
    def region(self) -> Region:
        """Which part of the whole this process has."""
        indices = [torch.arange(size) for size in self.shape]
        for axis, (place, count) in self.places.items():
            dim = 0
            if axis == "tensor" and self.division is not None:
                dim, order = self.division.dim, self.division.order
                indices[dim] = indices[dim] if order is None else order.cpu()
            parts = indices[dim].chunk(count)  # as `fully_shard` cuts: the last are smaller, or empty
            indices[dim] = parts[place] if place < len(parts) else indices[dim][:0]
        return tuple(map(runs_of, indices))

    @torch.no_grad()
    def put(self, whole: Tensor) -> None:
        """Take this process's part of a whole tensor that each process has."""
        self.local().copy_(part_of({self.name: whole}, self.name, self.region))


@dataclass(frozen=True)
class Sharded:
    """A model divided among the processes of a mesh.

    model: divided in place.
    mesh: [data, fsdp, context, tensor].
    expert_mesh: [copy, expert, inner], of the same processes; None: experts are not divided.
    parameters: all of the model's, by name; a tied one once.
    partial: names of those whose gradients are summed over 'tensor'.
    """

    model: LanguageModule
    layout: ParallelLayout
    mesh: DeviceMesh
    parameters: dict[str, ShardedParameter]
    partial: frozenset[str]
    expert_mesh: DeviceMesh | None = None

    @property
    def rank(self) -> int:
        """Of this process."""
        return dist.get_rank()

    def reduce_gradients(self) -> None:
        """Sum what `fully_shard` did not: copies' gradients over 'data', all over 'context', those of partial parameters over
        'tensor', and those of experts over the processes that have the same ones: their tokens came from the others already."""
        layout = self.layout
        experts = [name for name, one in self.parameters.items() if one.experts is not None]
        if self.expert_mesh is not None:
            gradients = [self._gradient(name) for name in experts]
            if self.gradient_scale != 1:  # `fully_shard` takes the mean of the others
                torch._foreach_div_([each for each in gradients if each is not None], self.gradient_scale)
            if layout.parts > layout.expert:
                _sum(self.expert_mesh["copy"].get_group(), gradients)
        if layout.tensor > 1:
            group = self.mesh["tensor"].get_group()
            _sum(group, [self._gradient(name) for name in sorted(self.partial)])
        if layout.context > 1:
            _sum(self.mesh["context"].get_group(), [self._gradient(name) for name in self.parameters])
        if layout.data > 1 and layout.fsdp == 1:
            group = self.mesh["data"].get_group()
            _sum(group, [self._gradient(name) for name in self.parameters if name not in experts])

    @property
    def gradient_scale(self) -> int:
        """By what a loss is multiplied before its backward pass: `fully_shard` takes the mean over the parts of a batch."""
        return self.layout.parts if self.layout.fsdp > 1 else 1

    def _gradient(self, name: str) -> Tensor | None:
        return self.parameters[name].local_gradient()

    def gradient_norm(self, order: float) -> Tensor:
        """The norm of the whole gradient, of all parameters."""
        total = torch.zeros((), dtype=torch.float64, device=self.model.device)
        world = self.layout.processes
        for one in self.parameters.values():
            gradient = one.local_gradient()
            if gradient is not None and gradient.numel():
                # a part that several processes have is counted by each of them
                own = torch.linalg.vector_norm(gradient.float(), order).double() ** order
                total += own * (one.shards / world)
        dist.all_reduce(total)
        return total ** (1 / order)

    def clip_gradients(self, limit: float) -> Tensor:
        """Scale the gradient to a norm of at most `limit`, as torch's `clip_grad_norm_` does. Returns the norm before."""
        norm = self.gradient_norm(2.0)
        factor = float(torch.clamp(limit / (norm + 1e-6), max=1.0))
        gradients = [g for g in map(self._gradient, self.parameters) if g is not None and g.numel()]
        if gradients:
            torch._foreach_mul_(gradients, factor)
        return norm

    def reshard(self) -> None:
        """Give up the whole weights that a pass without a backward pass leaves behind."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The whole weights, one after the other: no more than one is in memory. All processes go through it together."""
        self.reshard()
        for name, one in self.parameters.items():
            yield name, one.whole(one.parameter.detach())

    def buffers(self) -> dict[str, Tensor]:
        """What the model keeps beside its parameters: the same in each process."""
        found = {}
        for name, module in self.model.named_modules():
            for own, buffer in module.named_buffers(recurse=False):
                if own not in module._non_persistent_buffers_set:
                    found[f"{name}.{own}" if name else own] = buffer
        return found

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take this process's part of whole weights, of which no more is read where they are stored. Frozen parameters that are
        not among them stay as they are. Raises: ShoestringError where they are of another model.
        """
        self.reshard()
        buffers = self.buffers()
        if unknown := weights.keys() - self.parameters.keys() - buffers.keys():
            raise ShoestringError(f"the saved weights do not fit: the model has no {min(unknown)}")
        for name, one in self.parameters.items():
            if name in weights:
                found = part_of(weights, name, one.region)
                if found.shape != one.local().shape:
                    raise ShoestringError(f"the saved weights do not fit: {name} has another shape")
                one.local().copy_(found)
            elif one.parameter.requires_grad:
                raise ShoestringError(f"the saved weights do not fit: {name} is not among them")
        for name, buffer in buffers.items():
            if name in weights:
                buffer.copy_(weights[name])

    @cached_property
    def written_here(self) -> frozenset[str]:
        """The parameters of which this process writes its part, where several have the same part: each to whoever has the least to
        write by then. All processes come to the same."""
        where = [self.layout.places(rank) for rank in range(self.layout.processes)]
        load, found = [0] * len(where), set()
        for name, one in self.parameters.items():
            same: dict[tuple[int, ...], list[int]] = {}
            for rank, places in enumerate(where):
                same.setdefault(tuple(places[axis] for axis in one.places), []).append(rank)
            for alike in same.values():
                writer = min(alike, key=load.__getitem__)
                load[writer] += one.shape.numel() * one.parameter.element_size() // len(same)
                if writer == self.rank:
                    found.add(name)
        return frozenset(found)


def _sum(group: Any, gradients: list[Tensor | None]) -> None:
    """All-reduce gradients as one buffer."""
    there = [gradient for gradient in gradients if gradient is not None]
    if not there:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in there])
    dist.all_reduce(flat, group=group)
    for gradient, part in zip(there, flat.split([g.numel() for g in there]), strict=True):
        gradient.copy_(part.view_as(gradient))


def shard(model: LanguageModule, layout: ParallelLayout, device: str = "cpu") -> Sharded:
    """Divide a model, the same in each process, as the layout says: in place, and for good.

    All processes of torch's default group call it together. Raises: UsageError where the layout does not fit.
    """
    if layout.fsdp * layout.tensor * layout.context * layout.expert > 1 and not isinstance(model, Blocks):
        raise UsageError("parallel: a model that is only wrapped is not divided: give parallel.data alone")
    mesh = layout.mesh(device)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    anatomy = model.anatomy()
    divided = Divided({}, frozenset())
    if layout.tensor > 1:
        divided = divide(anatomy, mesh["tensor"])
    if layout.context > 1 and isinstance(model, Blocks):
        divide_context(model, mesh["context"])
    expert_mesh, experts = None, frozenset[str]()
    if layout.expert > 1 and isinstance(model, Blocks):
        expert_mesh = layout.expert_mesh(device)
        experts = divide_experts(model, expert_mesh["expert"])
    if layout.checkpointing != "none":
        checkpoint_layers(anatomy, "inputs" if layout.checkpointing == "layers" else "products")
    if layout.fsdp > 1:
        apart = {parameter for name, parameter in model.named_parameters() if name in experts}
        along = mesh["data", "fsdp"] if layout.data > 1 else mesh["fsdp"]
        narrow = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        policy = narrow if layout.precision == "bfloat16" else MixedPrecisionPolicy()
        for layer in layers_of(anatomy):
            fully_shard(layer, mesh=along, ignored_params=apart, mp_policy=policy)
        fully_shard(model, mesh=along, ignored_params=apart)
        register_fsdp_forward_method(model, "read")
    model.changed()
    model.cost(
        Shape(1, 1, backward=True)
    )  # it keeps sizes that it takes from `state_dict`, which gives up whole weights
    own = layout.places(dist.get_rank())

    def sharded(name: str, parameter: nn.Parameter) -> ShardedParameter:
        division, of_experts = divided.weights.get(name), name in experts
        axes = ("expert",) if of_experts else ("fsdp",) if division is None else ("tensor", "fsdp")
        places = {axis: (own[axis], getattr(layout, axis)) for axis in axes if getattr(layout, axis) > 1}
        group = expert_mesh["expert"] if expert_mesh is not None and of_experts else None
        return ShardedParameter(name, parameter, shapes[name], places, division, group)

    parameters = {name: sharded(name, parameter) for name, parameter in model.named_parameters()}
    return Sharded(model, layout, mesh, parameters, divided.partial, expert_mesh)
