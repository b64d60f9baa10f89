"""What a pass costs: one vocabulary for the ledger, the planner, the simulator and the scheduler.

A matrix product of [m, n] and [n, k] is 2mnk operations; its backward pass is one such product for a weight that is trained,
and one for an input that takes a gradient. Attention is counted over the full square of queries and keys, though a causal
kernel skips part of it. The fused kernels keep no attention probabilities, so their backward pass is five products, one of
them the scores again, against two forward. Embedding look-ups, norms, activations and masks are free.

This is the convention of `torch.utils.flop_counter`, with which the tests compare. On CPU that counter does not know the
attention kernel: in torch 2.13 `aten._scaled_dot_product_flash_attention_for_cpu` and its backward count as nothing. So the
tests give it, for that kernel, the formulas it has for the GPU's flash kernel.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn


class Shape(NamedTuple):
    """The shape of a pass.

    rows: sequences.
    new: tokens of each that are read.
    past: tokens of each that its cache holds already.
    outputs: places of each at which the head is applied; None: at all of the new ones.
    backward: whether a backward pass follows.
    """

    rows: int
    new: int
    past: int = 0
    outputs: int | None = None
    backward: bool = False

    @property
    def tokens(self) -> int:
        """Tokens read, of all rows."""
        return self.rows * self.new

    @property
    def head_places(self) -> int:
        """Places at which the head is applied, of all rows."""
        return self.rows * (self.new if self.outputs is None else self.outputs)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a pass costs. Costs of passes one after the other add up.

    flops: operations, in the convention above.
    moved: bytes of weights and cache that are read, each weight once a pass.
    held: bytes of weights and cache that are there at the end; of a sum, those of the larger one.
    """

    flops: int = 0
    moved: int = 0
    held: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.moved + other.moved, max(self.held, other.held))

    def beside(self, other: "Cost") -> "Cost":
        """The cost of two parts of one pass: what both hold is there at once."""
        return Cost(self.flops + other.flops, self.moved + other.moved, self.held + other.held)


def ragged(cost: Callable[[Shape], Cost], passes: Iterable[tuple[int, int]]) -> Cost:
    """What one pass over rows of different lengths costs: (new, past) of each row. The weights are read once.

    cost: of a pass, without the head; for a number of new tokens, linear in those of the past.
    """
    rows: dict[int, list[int]] = {}
    for new, past in passes:
        rows.setdefault(new, []).append(past)
    flops = moved = held = weights = 0
    for new, pasts in rows.items():
        first, second = cost(Shape(1, new, 0)), cost(Shape(1, new, 1))
        weights, total = first.moved, sum(pasts)
        flops += len(pasts) * first.flops + total * (second.flops - first.flops)
        moved += total * (second.moved - first.moved)
        held += len(pasts) * (first.held - weights) + total * (second.held - first.held)
    return Cost(flops, weights + moved, weights + held)


def bytes_of(module: nn.Module) -> int:
    """Bytes of the weights of a module, each once: its parameters, and the buffers that a checkpoint holds."""
    seen = {id(tensor): tensor.numel() * tensor.element_size() for tensor in module.state_dict(keep_vars=True).values()}
    return sum(seen.values())


def trains(module: nn.Module) -> bool:
    """Whether any parameter of the module takes a gradient."""
    return any(parameter.requires_grad for parameter in module.parameters())


def linear(layer: nn.Module, tokens: int, backward: bool = False, inputs: bool = True) -> int:
    """Operations of a linear layer on `tokens` vectors. A layer that has a method `flops` of these arguments is asked itself.

    backward: with its backward pass.
    inputs: whether its inputs take a gradient there.
    """
    if hasattr(type(layer), "flops"):
        asked: int = layer.flops(tokens, backward, inputs)  # type: ignore[operator]
        return asked
    sized: Any = layer  # packed layers have the sizes and no weight
    products = 1 + (int(trains(layer)) + int(inputs) if backward else 0)
    found: int = products * 2 * tokens * sized.in_features * sized.out_features
    return found


def matrix_product(weight: Tensor, tokens: int, backward: bool = False, inputs: bool = True) -> int:
    """As `linear`, of a weight [.., out, in] of which each of `tokens` vectors meets one [out, in]."""
    products = 1 + (int(weight.requires_grad) + int(inputs) if backward else 0)
    return products * 2 * tokens * weight.shape[-2] * weight.shape[-1]


def attention(rows: int, heads: int, queries: int, keys: int, head_width: int, backward: bool = False) -> int:
    """Operations of scaled dot-product attention.

    rows: sequences. heads: query heads, however few key heads they share. queries, keys: places of each sequence.
    """
    return (7 if backward else 2) * 2 * rows * heads * queries * keys * head_width
