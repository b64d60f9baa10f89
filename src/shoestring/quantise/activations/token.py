"""A scale for each token, found as it comes."""

from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from shoestring.config import Choice
from shoestring.method import method
from shoestring.quantise.inputs import InputRounding


@method(
    "quantise",
    kind="activations",
    name="token",
    paper="ZeroQuant: Efficient and Affordable Post-Training Quantization for Large-Scale Transformers, arXiv:2206.01861",
    claim="activations token by token and weights in groups: INT8 with minimal loss of accuracy",
    cost="two passes over what a layer reads",
)
class TokenRounding(InputRounding):
    """Round each token to 2^b - 1 equal steps of its own.

    Yao et al. (2022), arXiv:2206.01861. For a token x [in]:

        s = max |x| / (2^(b - 1) - 1),    x~ = s round(x / s), halves to the even code

    With b = 8 these are the very numbers that the integer kernels round to. QuaRot and FlatQuant round activations so in 4 bits,
    after a rotation (`--transform hadamard` or `flatquant`), with clipping besides, which is not here.

    bits: b.
    """

    def __init__(self, *, bits: Annotated[int, Interval(ge=2, le=8)] = 8) -> None:
        self.bits = bits

    @property
    def choice(self) -> Choice:
        return Choice.of("quantise", "token", kind="activations", bits=self.bits)

    @property
    def integer(self) -> bool:
        """Whether `kernels.int_matmul` rounds so."""
        return self.bits == 8

    def round(self, x: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """As `InputRounding.round`."""
        largest = (1 << self.bits - 1) - 1
        wide = x.float()
        scale = wide.abs().amax(-1, keepdim=True) / largest
        codes = (wide / torch.where(scale == 0, 1.0, scale)).clamp(-largest, largest).round()
        return (codes * scale).to(x.dtype)
