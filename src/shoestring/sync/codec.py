"""What a codec is: a tensor packed into bytes for a slow link, and the tensor that those bytes stand for."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from shoestring.config import Pick


class Codec(Protocol):
    """Packs float32 tensors of any shape, of no elements too. Encoding depends on the values alone: no state, no chance, so
    that every worker that decodes the same bytes has the same tensor, bit for bit."""

    @property
    def fixed_size(self) -> bool:
        """Whether `payload_bytes` is exact, so that a receiver knows how much to expect; else it is the most there can be."""
        ...

    @property
    def rowwise(self) -> bool:
        """Whether it codes each row of a matrix by itself, so that matrices whose rows are of one length may be coded as one,
        to the same values. Sizes are fixed then."""
        ...

    def payload_bytes(self, shape: Sequence[int]) -> int:
        """Bytes that a tensor of this shape takes when it is encoded."""
        ...

    def encode(self, values: Tensor) -> Tensor:
        """The payload, uint8 [bytes], on the device of `values`. Every value is finite: the caller has looked."""
        ...

    def decode(self, payload: Tensor, shape: Sequence[int]) -> Tensor:
        """The float32 tensor of this shape that a payload stands for. Raises: ValueError where it cannot be one."""
        ...


def shorthand(text: str) -> dict[str, Any]:
    """'2bit' -> the table {name: 'linear', bits: 2}; any other word is a codec's name."""
    bits = text.removesuffix("bit").removesuffix("-")
    if text.endswith("bit") and bits.isdigit():
        return {"name": "linear", "bits": int(bits)}
    return {"name": text}


CODEC = Pick("sync", "codec", default="float32", shorthand=shorthand)
