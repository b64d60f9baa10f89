"""Training for integer weights."""

from typing import Annotated

from shoestring.config import Choice
from shoestring.lowbit.activations import Activations
from shoestring.lowbit.format import ScaleOf
from shoestring.lowbit.formats.integer import Bits, Integer
from shoestring.lowbit.training import ACTIVE, FormatTraining
from shoestring.method import Count, method


@method(
    "lowbit",
    kind="edit",
    name="integer",
    paper="LLM-QAT: Data-Free Quantization Aware Training for Large Language Models, arXiv:2305.17888",
    claim="4-bit weights, trained with, lose little; rounding alone suffices at 8 bits",
    cost="while training, a few passes over the weights for every forward pass; then bits / 8 bytes a weight",
)
class IntegerTraining(FormatTraining):
    """Train the matrices of the layers to be integers of 2 to 8 bits times a scale; the formulas are in `lowbit.formats.integer`.

    bits: of a weight, its sign included.
    scale: what has a scale of its own: 'tensor', 'row', or 'group' of `group` columns.
    shards: with 'tensor', equal parts of the rows with a scale each.
    group: columns of a group.
    """

    def __init__(
        self,
        *,
        bits: Bits = 4,
        scale: ScaleOf = "tensor",
        shards: Count = 1,
        group: Count = 256,
        activations: Activations = "none",
        keep: tuple[str, ...] = (),
        active: Annotated[Choice, ACTIVE] = ACTIVE.choice(),  # noqa: B008 (frozen)
    ) -> None:
        made = Integer(bits=bits, scale=scale, shards=shards, group=group)
        super().__init__(made, activations, keep, active)
