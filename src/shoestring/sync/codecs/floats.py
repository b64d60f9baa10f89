"""Codecs that send each entry as a float."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shoestring.method import method
from shoestring.sync.codecs.payload import Reader, as_bytes, entries, flat_float32

BFLOAT16_MOST = torch.finfo(torch.bfloat16).max


@method(
    "sync",
    kind="codec",
    name="float32",
    claim="nothing is lost",
    cost="32 bits an entry; a copy each way",
)
class Float32:
    """The entries as they are: no compression."""

    fixed_size = rowwise = True

    def payload_bytes(self, shape: Sequence[int]) -> int:
        """4 bytes an entry."""
        return 4 * entries(shape)

    def encode(self, values: Tensor) -> Tensor:
        """The bytes of the entries in row-major order, uint8 [4 entries]; a copy, so that `values` may change."""
        return as_bytes(flat_float32(values).clone())

    def decode(self, payload: Tensor, shape: Sequence[int]) -> Tensor:
        """The tensor, bit for bit. Raises: ValueError for a payload of another length or an entry that is not finite."""
        size = self.payload_bytes(shape)
        return Reader(payload, least=size, most=size).floats(entries(shape), torch.float32).reshape(tuple(shape))


@method(
    "sync",
    kind="codec",
    name="bfloat16",
    claim="half the bytes; 8 significant bits suffice for what is averaged",
    cost="16 bits an entry; a conversion each way",
)
class BFloat16:
    """The entries rounded to bfloat16 (to nearest, ties to even), which has the range of float32.

    A magnitude that would round to infinity, above 3.3895e38, becomes the largest finite one.
    """

    fixed_size = rowwise = True

    def payload_bytes(self, shape: Sequence[int]) -> int:
        """2 bytes an entry."""
        return 2 * entries(shape)

    def encode(self, values: Tensor) -> Tensor:
        """The bytes of the rounded entries in row-major order, uint8 [2 entries]."""
        return as_bytes(flat_float32(values).clamp(-BFLOAT16_MOST, BFLOAT16_MOST).to(torch.bfloat16))

    def decode(self, payload: Tensor, shape: Sequence[int]) -> Tensor:
        """The rounded tensor. Raises: ValueError for a payload of another length or an entry that is not finite."""
        size = self.payload_bytes(shape)
        return Reader(payload, least=size, most=size).floats(entries(shape), torch.bfloat16).reshape(tuple(shape))
