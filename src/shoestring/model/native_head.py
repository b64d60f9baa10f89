"""Logits of hidden states by one matrix of numbers, natively where that is faster."""

from torch import Tensor

from shoestring.contract.model import MatrixHead
from shoestring.kernels.decoder import DENSE, matmul
from shoestring.model.native_pass import heard, worth


class NativeHead(MatrixHead):
    """As `MatrixHead`. The native library multiplies few tokens on the CPU, with sums in float32, where nobody wants to see it."""

    def logits(self, hidden: Tensor) -> Tensor:
        weight, tokens = self.weight, hidden.numel() // max(1, hidden.shape[-1])
        fit = (
            hidden.is_cpu
            and weight.is_cpu
            and weight.is_contiguous()
            and weight.dtype in DENSE
            and hidden.dtype == weight.dtype
        )
        if fit and tokens and not heard() and worth(tokens, {weight.dtype}):
            found = matmul(hidden.reshape(tokens, -1), weight)
            if found is not None:
                return found.view(*hidden.shape[:-1], len(weight)).to(hidden.dtype)
        return super().logits(hidden)
