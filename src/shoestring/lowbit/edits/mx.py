"""Training for MX formats."""

from shoestring.lowbit.formats.mx import MX
from shoestring.lowbit.training import FormatTraining
from shoestring.method import method


@method(
    "lowbit",
    kind="edit",
    name="mx",
    paper="Microscaling Data Formats for Deep Learning, arXiv:2310.10537",
    claim="generative language models trained with weights, activations and gradients below 8 bits, with minimal loss",
    cost="while training, a few passes over the weights for every forward pass; then 8.25, 6.25 or 4.25 bits a weight",
)
class MXTraining(FormatTraining, of=MX, scale="group", group=32):
    """Train the matrices of the layers for MX elements with powers of two; the formulas are in `lowbit.formats.mx`.

    element: int8, fp6_e2m3 or fp4_e2m1.
    scale: what has a power of its own: 'tensor', 'row', or 'group' of `group` columns.
    shards: with 'tensor', equal parts of the rows with a power each.
    group: columns of a group.
    """
