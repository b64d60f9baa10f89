"""Long convolutions: each feature is mixed over the text by a learnt kernel, between two gates."""

from typing import Annotated, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.cost import Shape
from shoestring.contract.role import VECTOR
from shoestring.method import NonNegative, Whole, method
from shoestring.model.documents import by_document
from shoestring.model.long_convolution import Way, long_convolution, long_convolution_flops
from shoestring.model.recurrent import Kept, RecurrentMixer
from shoestring.model.recurrent_cache import RecurrentState
from shoestring.model.short_convolution import short_convolution


@method(
    "model",
    kind="token mixer",
    name="long_convolution",
    paper="Simple Hardware-Efficient Long Convolutions for Sequence Modeling, arXiv:2302.06646; FlashFFTConv: Efficient "
    "Convolutions for Long Sequences with Tensor Cores, arXiv:2311.05908",
    claim="squashed and smooth kernels, learnt directly, do as well as state-space models on long-range, image, language and brain "
    "data; by matrix products, convolutions up to 7.93 times as fast as PyTorch's by FFT on GPUs",
    cost="4 width inner to project; T log T a feature by 'fft', about T^1.5 by 'monarch'; 2 length FLOPs a feature to decode",
)
class LongConvolution(RecurrentMixer):
    """A convolution with a kernel of `length` taps for each feature, of a product of two gates, times a third.

    Daniel Y. Fu et al., 2023, arXiv:2302.06646 (kernels), arXiv:2311.05908 (matrix products); gates: H3, arXiv:2212.14052.

    q, k, v = short_convolution(W x), of 3 taps; u = k * v; y = W_out (q * (K' * u + s u)), K' * u a causal convolution.
    K' = smooth(squash(K)): squash(K) = sign(K) max(|K| - squash, 0); smooth is the mean over 2 smooth + 1 neighbours within the
    kernel. K: [inner, length], inner = heads x head_width. x: [B, T, width] -> [B, T, width].

    A kernel shorter than the text is the partial convolution of the paper. `by` chooses how it is computed; the function
    `model.long_convolution.fastest` says which takes least time on a machine.

    Cost: as the card says. State: the last length - 1 products u, whatever the text's length.
    Different from the papers: the kernel begins as normal numbers that fall off at rates from slow to fast over the features; no
    dropout of the kernel; frequency-sparse kernels, which see later tokens, are in the convolution only. Packed documents are
    convolved apart.

    length: taps. squash, smooth: above. by: 'fft' or 'monarch'.
    """

    roles: ClassVar[dict[str, str]] = {"kernel": VECTOR, "taps": VECTOR}
    compiles = False  # the compiler knows no complex numbers

    def __init__(
        self,
        width: int,
        heads: int,
        key_value_heads: int,
        head_width: int,
        *,
        length: Annotated[int, Interval(ge=2, le=1 << 22)] = 256,
        squash: NonNegative = 0.001,
        smooth: Whole = 0,
        by: Way = "fft",
    ) -> None:
        super().__init__()
        self.inner, self.length, self.squash, self.smooth, self.by = heads * head_width, length, squash, smooth, by
        self.count = 3
        self.input = nn.Linear(width, 3 * self.inner, bias=False)
        self.taps = nn.Parameter(torch.empty(3 * self.inner, self.count))
        self.kernel = nn.Parameter(torch.empty(self.inner, length))
        self.skip = nn.Parameter(torch.empty(self.inner))
        self.output = nn.Linear(self.inner, width, bias=False)
        self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        """Kernels normal, of standard deviation 0.1 e^(-r j / length), r from 1 to inner / 2 over the features; s 1."""
        bound = self.count**-0.5
        self.taps.uniform_(-bound, bound)
        self.skip.fill_(1.0)
        if self.kernel.device.type != "meta":
            features = torch.arange(self.inner, device=self.kernel.device) / self.inner
            rates = max(1.0, self.inner / 2) ** features
            fall = torch.arange(self.length, device=self.kernel.device) / self.length
            self.kernel.normal_(std=0.1).mul_((-rates[:, None] * fall).exp())

    def shaped(self) -> Tensor:
        """The kernel, squashed and smooth, [inner, length]."""
        made = F.softshrink(self.kernel, self.squash)
        if self.smooth:
            across = 2 * self.smooth + 1
            made = F.avg_pool1d(made[None], across, 1, self.smooth, count_include_pad=False)[0]
        return made

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor | None = None, cache: RecurrentState | None = None
    ) -> Tensor:
        """x [B, T, width] -> [B, T, width]. cos, sin: not read. documents: [B, T]. cache: of `new_cache`."""
        kept = None if cache is None else cache.tensors
        mixed, whole = short_convolution(self.input(x), self.taps, None if kept is None else kept["inputs"], documents)
        q, k, v = mixed.chunk(3, -1)
        u, kernel = k * v, self.shaped()
        if cache is None or kept is None:
            if documents is None:
                found = self._convolved(u, kernel)
            else:
                found = by_document(lambda part: self._convolved(part, kernel), documents, [u])
        else:
            seen = torch.cat((kept["products"].to(u.dtype), u), 1)
            if cache.fresh:
                found = self._convolved(u, kernel)
            elif u.shape[1] == 1:
                found = torch.einsum("bnd,dn->bd", seen, kernel.flip(-1).to(u.dtype))[:, None]
            else:
                found = self._convolved(seen, kernel)[:, self.length - 1 :]
            kept["inputs"], kept["products"] = cache.last(whole, self.count - 1), cache.last(seen, self.length - 1)
        return self.output(q * (found + self.skip.to(u.dtype) * u))

    def _convolved(self, u: Tensor, kernel: Tensor) -> Tensor:
        return long_convolution(u.transpose(1, 2), kernel, self.by).transpose(1, 2)

    def kept(self) -> dict[str, Kept]:
        """The tensors of the state of a row."""
        return {
            "inputs": Kept((self.count - 1, 3 * self.inner)),
            "products": Kept((self.length - 1, self.inner)),
        }

    def inside_trains(self) -> bool:
        return cost.trains(self)

    def own_flops(self, shape: Shape, backward: bool) -> int:
        if not shape.new:
            return 0
        if shape.past and shape.new == 1:
            return 2 * shape.rows * self.inner * self.length
        length = shape.new + (self.length - 1 if shape.past else 0)
        kinds = backward, shape.backward and self.kernel.requires_grad
        return long_convolution_flops(self.by, shape.rows, self.inner, length, self.length, kinds)
