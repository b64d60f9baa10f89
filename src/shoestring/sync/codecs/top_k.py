"""The largest entries alone."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from shoestring.method import Fraction, method
from shoestring.sync.codec import Codec
from shoestring.sync.codecs.floats import BFloat16, Float32
from shoestring.sync.codecs.gaps import decode_places, encode_places, most_bytes
from shoestring.sync.codecs.histogram import largest
from shoestring.sync.codecs.linear import Linear
from shoestring.sync.codecs.payload import Reader, entries, flat_float32

Values = Literal["float32", "bfloat16", "8bit", "4bit", "2bit", "1bit"]


@method(
    "sync",
    kind="codec",
    name="top_k",
    paper="Sparse Communication for Distributed Gradient Descent, arXiv:1704.05021",
    claim="99 % of the entries dropped, with error feedback: 49 % faster on MNIST and 22 % on translation, without "
    "damage to accuracy or BLEU",
    cost="about 8.2 bits for a place at 1 %, and its value; a histogram and some 5 passes to encode",
)
class TopK:
    """The k entries of largest magnitude of a tensor, at their places; zero elsewhere.

    Aji and Heafield (2017), arXiv:1704.05021; for pseudo-gradients Thérien et al. (2025), arXiv:2505.23725, k / n = 0.5 to
    0.005. k = fraction x entries, rounded to the nearest, at least one. Of equal magnitudes the first in row-major order
    are kept. values: how the kept ones are coded, in order of place: as floats, or by `Linear` with one scale for all
    ('2bit' ...), which is top-k and quantisation combined. Payload: the coded values, then the places (see `gaps`), whose
    length depends on where they lie.

    fraction: the share of the entries that is kept.
    """

    fixed_size = rowwise = False

    def __init__(self, *, fraction: Fraction = 0.01, values: Values = "bfloat16") -> None:
        self.fraction, self.values = fraction, values
        floats: dict[str, type[Float32] | type[BFloat16]] = {"float32": Float32, "bfloat16": BFloat16}
        self._codec: Codec = (
            floats[values]() if values in floats else Linear(bits=int(values.removesuffix("bit")), scope="tensor")  # type: ignore[arg-type]
        )

    def kept(self, shape: Sequence[int]) -> int:
        """k: how many entries of a tensor of this shape are sent."""
        total = entries(shape)
        return min(total, max(1, round(self.fraction * total)))

    def payload_bytes(self, shape: Sequence[int]) -> int:
        """The most bytes it can take; evenly strewn places take nearly as many."""
        count = self.kept(shape)
        return self._codec.payload_bytes((count,)) + most_bytes(count, entries(shape)) if count else 0

    @torch.no_grad()
    def encode(self, values: Tensor) -> Tensor:
        """The payload, uint8 of at most `payload_bytes`."""
        count = self.kept(values.shape)
        flat = flat_float32(values)
        if not count:
            return torch.empty(0, dtype=torch.uint8, device=flat.device)
        places = largest(flat, count)
        return torch.cat([self._codec.encode(flat[places]), encode_places(places, flat.numel())])

    @torch.no_grad()
    def decode(self, payload: Tensor, shape: Sequence[int]) -> Tensor:
        """The sparse tensor, dense. Raises: ValueError for a payload whose lengths, values or places cannot be."""
        count, total = self.kept(shape), entries(shape)
        most = self.payload_bytes(shape)
        own = self._codec.payload_bytes((count,))
        reader = Reader(payload, least=min(own, most), most=most)
        flat = torch.zeros(total, dtype=torch.float32, device=payload.device)
        if count:
            kept = self._codec.decode(reader.take(own), (count,))
            flat[decode_places(reader.take(reader.left), count, total)] = kept
        return flat.reshape(tuple(shape))
