"""Training for integer weights."""

from shoestring.lowbit.formats.integer import Integer
from shoestring.lowbit.training import FormatTraining
from shoestring.method import method


@method(
    "lowbit",
    kind="edit",
    name="integer",
    paper="LLM-QAT: Data-Free Quantization Aware Training for Large Language Models, arXiv:2305.17888",
    claim="4-bit weights, trained with, lose little; rounding alone suffices at 8 bits",
    cost="while training, a few passes over the weights for every forward pass; then bits / 8 bytes a weight",
)
class IntegerTraining(FormatTraining, of=Integer):
    """Train the matrices of the layers to be integers of 2 to 8 bits times a scale; the formulas are in `lowbit.formats.integer`.

    bits: of a weight, its sign included.
    scale: what has a scale of its own: 'tensor', 'row', or 'group' of `group` columns.
    shards: with 'tensor', equal parts of the rows with a scale each.
    group: columns of a group.
    """
