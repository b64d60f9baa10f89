"""Training for MX formats."""

from typing import Annotated

from shoestring.config import Choice
from shoestring.lowbit.activations import Activations
from shoestring.lowbit.format import ScaleOf
from shoestring.lowbit.formats.mx import MX, MXElement
from shoestring.lowbit.training import ACTIVE, FormatTraining
from shoestring.method import Count, method


@method(
    "lowbit",
    kind="edit",
    name="mx",
    paper="Microscaling Data Formats for Deep Learning, arXiv:2310.10537",
    claim="generative language models trained with weights, activations and gradients below 8 bits, with minimal loss",
    cost="while training, a few passes over the weights for every forward pass; then 8.25, 6.25 or 4.25 bits a weight",
)
class MXTraining(FormatTraining):
    """Train the matrices of the layers for MX elements with powers of two; the formulas are in `lowbit.formats.mx`.

    element: int8, fp6_e2m3 or fp4_e2m1.
    scale: what has a power of its own: 'tensor', 'row', or 'group' of `group` columns.
    shards: with 'tensor', equal parts of the rows with a power each.
    group: columns of a group.
    """

    def __init__(
        self,
        *,
        element: MXElement = "fp4_e2m1",
        scale: ScaleOf = "group",
        shards: Count = 1,
        group: Count = 32,
        activations: Activations = "none",
        keep: tuple[str, ...] = (),
        active: Annotated[Choice, ACTIVE] = ACTIVE.choice(),  # noqa: B008 (frozen)
    ) -> None:
        made = MX(element=element, scale=scale, shards=shards, group=group)
        super().__init__(made, activations, keep, active)
