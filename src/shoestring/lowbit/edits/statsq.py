"""Training for StatsQ's weights."""

from shoestring.lowbit.formats.statsq import StatsQ
from shoestring.lowbit.training import FormatTraining
from shoestring.method import method


@method(
    "lowbit",
    kind="edit",
    name="statsq",
    paper="Oscillation-free Quantization for Low-bit Vision Transformers, arXiv:2302.02210",
    claim="with two more techniques, 2-bit DeiT-T and DeiT-S 9.8% and 7.7% above the previous best on ImageNet",
    cost="while training, a few passes over the weights for every forward pass; then bits / 8 bytes a weight",
)
class StatsQTraining(FormatTraining, of=StatsQ, scale="row"):
    """Train the matrices of the layers for StatsQ's numbers of 2 to 7 bits; the formulas are in `lowbit.formats.statsq`.

    bits: of a weight, its sign included.
    scale: what has a scale of its own: 'tensor', 'row', or 'group' of `group` columns.
    shards: with 'tensor', equal parts of the rows with a scale each.
    group: columns of a group.
    """
