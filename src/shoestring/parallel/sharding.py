"""A model divided among processes: what each has of every parameter, and how it is made whole again."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.model.blocks import Blocks
from shoestring.parallel.activation_checkpointing import checkpoint_layers, layers_of
from shoestring.parallel.layout import ParallelLayout
from shoestring.parallel.tensor_parallel import Divided, Division, divide

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardedParameter:
    """A parameter of which this process has a part, or all.

    name: in the model.
    parameter: a DTensor where it is divided.
    shape: of the whole.
    fsdp, tensor: (this process's place, how many) among those that divide it.
    division: of its rows or columns among the processes of 'tensor'; None: each has it whole.
    """

    name: str
    parameter: nn.Parameter
    shape: torch.Size
    fsdp: tuple[int, int]
    tensor: tuple[int, int]
    division: Division | None

    @property
    def divided(self) -> bool:
        """Whether this process has a part alone."""
        return isinstance(self.parameter, DTensor)

    @property
    def shards(self) -> int:
        """Into how many different parts it is divided."""
        return self.fsdp[1] * (self.tensor[1] if self.division is not None else 1)

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

    def part_of(self, whole: Tensor) -> Tensor:
        """This process's part of a whole tensor that it has."""
        if self.division is not None:
            place, count = self.tensor
            if self.division.order is not None:
                whole = whole.index_select(self.division.dim, self.division.order.to(whole.device))
            whole = whole.chunk(count, self.division.dim)[place]
        place, count = self.fsdp
        if count == 1:
            return whole
        parts = whole.chunk(count, 0)  # as `fully_shard` cuts: the last are smaller, or empty
        return parts[place] if place < len(parts) else whole[:0]

    @torch.no_grad()
    def put(self, whole: Tensor) -> None:
        """Take this process's part of a whole tensor that each process has."""
        self.local().copy_(self.part_of(whole))


@dataclass(frozen=True)
class Sharded:
    """A model divided among the processes of a mesh.

    model: divided in place.
    mesh: [data, fsdp, tensor].
    parameters: all of the model's, by name; a tied one once.
    partial: names of those whose gradients are summed over 'tensor'.
    """

    model: LanguageModule
    layout: ParallelLayout
    mesh: DeviceMesh
    parameters: dict[str, ShardedParameter]
    partial: frozenset[str]

    @property
    def rank(self) -> int:
        """Of this process."""
        return dist.get_rank()

    def reduce_gradients(self) -> None:
        """Sum what `fully_shard` did not: copies' gradients over 'data', those of partial parameters over 'tensor'."""
        layout = self.layout
        if layout.tensor > 1:
            group = self.mesh["tensor"].get_group()
            _sum(group, [self._gradient(name) for name in sorted(self.partial)])
        if layout.data > 1 and layout.fsdp == 1:
            group = self.mesh["data"].get_group()
            _sum(group, [self._gradient(name) for name in self.parameters])

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

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take this process's part of whole weights that each process has."""
        self.reshard()
        for name, one in self.parameters.items():
            one.put(weights[name])


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
    if layout.fsdp * layout.tensor > 1 and not isinstance(model, Blocks):
        raise UsageError("parallel: a model that is only wrapped is not divided: give parallel.data alone")
    mesh = layout.mesh(device)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    anatomy = model.anatomy()
    divided = Divided({}, frozenset())
    if layout.tensor > 1:
        divided = divide(anatomy, mesh["tensor"])
    if layout.checkpointing != "none":
        checkpoint_layers(anatomy, "inputs" if layout.checkpointing == "layers" else "products")
    if layout.fsdp > 1:
        along = mesh["data", "fsdp"] if layout.data > 1 else mesh["fsdp"]
        narrow = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        policy = narrow if layout.precision == "bfloat16" else MixedPrecisionPolicy()
        for layer in layers_of(anatomy):
            fully_shard(layer, mesh=along, mp_policy=policy)
        fully_shard(model, mesh=along)
        register_fsdp_forward_method(model, "read")
    model.changed()
    model.cost(
        Shape(1, 1, backward=True)
    )  # it keeps sizes that it takes from `state_dict`, which gives up whole weights
    places = {name: (mesh.get_local_rank(name), mesh[name].size()) for name in ("fsdp", "tensor")}
    parameters = {
        name: ShardedParameter(
            name, parameter, shapes[name], places["fsdp"], places["tensor"], divided.weights.get(name)
        )
        for name, parameter in model.named_parameters()
    }
    return Sharded(model, layout, mesh, parameters, divided.partial)
