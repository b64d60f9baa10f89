"""Training for ternary weights."""

from shoestring.lowbit.formats.ternary import Ternary
from shoestring.lowbit.training import FormatTraining
from shoestring.method import method


@method(
    "lowbit",
    kind="edit",
    name="ternary",
    paper="Spectra 1.1: Scaling Laws and Efficient Inference for Ternary Language Models, arXiv:2506.23025; "
    "Spectra: Surprising Effectiveness of Pretraining Ternary Language Models at Scale, arXiv:2407.12327; "
    "The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits, arXiv:2402.17764",
    claim="ahead of float models of the same size in bits, and near those of the same parameters above a billion",
    cost="while training, a few passes over the weights for every forward pass; then 0.2 or 0.25 bytes a weight",
)
class TernaryTraining(FormatTraining, of=Ternary):
    """Train the matrices of the layers to be -1, 0 and 1 times a scale; the formulas are in `lowbit.formats.ternary`.

    scale: what has a scale of its own: 'tensor', 'row', or 'group' of `group` columns.
    shards: with 'tensor', equal parts of the rows with a scale each.
    group: columns of a group.
    epsilon: added to the mean of the absolute weights.
    """
