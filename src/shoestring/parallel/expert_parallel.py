"""Expert parallelism: the experts of each layer divided among processes, which send each other the tokens that go to them.

Scalable and Efficient MoE Training for Multitask Multilingual Models (Kim et al. 2021, arXiv:2109.10465) composes it with data
parallelism: processes that read different rows have all other weights, and a part of the experts each. A layer sends every token to
the processes that have its experts, and what those say comes back: two all-to-alls forward, and two backward.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from shoestring.errors import UsageError
from shoestring.model.blocks import Blocks
from shoestring.model.moe import MixtureOfExperts


class TokenExchange:
    """Sends tokens to the processes that have their experts, and brings back what those say: an `ExpertExchange`.

    group: the processes that divide the experts, in order of the experts that they have, equally many each.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.processes = group, dist.get_world_size(group)

    def __call__(
        self, rows: Tensor, counts: Sequence[int], experts: Callable[[Tensor, Sequence[int]], Tensor]
    ) -> Tensor:
        """As `ExpertExchange.__call__`."""
        asked = torch.tensor(counts, dtype=torch.int64, device=rows.device)
        coming = torch.empty_like(asked)
        dist.all_to_all_single(coming, asked, group=self.group)
        # [process that asks, own expert]
        shares = coming.view(self.processes, -1)
        sending = asked.view(self.processes, -1).sum(1).tolist()
        receiving = shares.sum(1).tolist()
        received: Tensor = _Exchanged.apply(rows, receiving, sending, self.group)
        # they lie by process, then by expert: the experts take them by expert
        number = torch.arange(shares.shape[1], device=rows.device).repeat(self.processes)
        order = number.repeat_interleave(shares.flatten()).argsort(stable=True)
        found = experts(received[order], shares.sum(0).tolist())
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=rows.device)
        answered: Tensor = _Exchanged.apply(found[back], sending, receiving, self.group)
        return answered


class _Exchanged(torch.autograd.Function):
    """Rows [N, width] to the processes of a group, and theirs here.

    sending: rows for each process, in order. receiving: rows from each. The gradient goes the way back.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, receiving: list[int], sending: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.way = sending, receiving, group
        found = rows.new_empty(sum(receiving), rows.shape[1])
        dist.all_to_all_single(found, rows.contiguous(), receiving, sending, group=group)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _Exchanged.apply(gradients[0], *ctx.way), None, None, None


def expert_layers(model: nn.Module) -> dict[str, MixtureOfExperts]:
    """The layers of experts of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MixtureOfExperts)}


def divide_experts(model: Blocks, mesh: DeviceMesh) -> frozenset[str]:
    """Leave each process its part of the experts of every layer, of which it has all. Returns the names of the parameters that were
    divided, along their first dimension.

    mesh: of the processes that divide them, one dimension.
    Raises: UsageError where there are no experts, or they cannot be divided into so many equal parts.
    """
    layers, parts = expert_layers(model), mesh.size()
    if not layers:
        raise UsageError(f"parallel.expert = {parts}: this model has no layer of experts (model.channel_mixer moe)")
    if model.config.span:
        raise UsageError(
            f"parallel.expert = {parts}: processes ask for experts together, and within a span ({model.config.span[0].span.name}) "
            "they may go through layers differently often: leave it out"
        )
    for name, layer in layers.items():
        if layer.experts % parts:
            raise UsageError(f"parallel.expert = {parts} does not divide the {layer.experts} experts of {name}")
    exchange = TokenExchange(mesh.get_group())
    place, divided = mesh.get_local_rank(), set()
    for name, layer in layers.items():
        divided |= {f"{name}.{own}" for own in layer.divide_experts(exchange, place, parts)}
    return frozenset(divided)
