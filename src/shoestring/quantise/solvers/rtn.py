"""Each weight to its nearest code."""

from torch import Tensor

from shoestring.method import method
from shoestring.quantise.format import CodeFormat, Encoded


@method(
    "quantise",
    kind="solver",
    name="rtn",
    paper="Is (Selective) Round-To-Nearest Quantization All You Need?, arXiv:2505.15909",
    claim="cheaper than advanced methods, with accuracy that can be similar",
    cost="a few passes over the weights; no text",
)
class RTN:
    """Round to the nearest: no text is looked at, and no weight makes up for another.

    weighted: ranges are chosen by squared errors of weights times the mean squares of what they are multiplied with, as importance
    matrices of llama.cpp do. It reads text.
    """

    reads: bool

    def __init__(self, *, weighted: bool = False) -> None:
        self.reads = weighted

    def __call__(self, weight: Tensor, format: CodeFormat, hessian: Tensor | None) -> Encoded:
        """As `parts.Solver`."""
        return format.encode(weight, hessian.diagonal() if self.reads and hessian is not None else None)
