"""What integer-only parts have in common: what they are told of ranges, and of a pass.

The counterpart of a token mixer or a channel mixer is a module with

* a constructor of the configuration of its layer;
* `looks(part, x, cos, sin)`, static: by name, numbers within the part as it is in floating point, whose ranges `fill` wants
  to know; of a channel mixer `looks(part, x)`;
* `fill(part, ranges, reads, writes)`: take in the part. ranges: of those names, and of `OUTPUT`, what its output matrix reads.
  reads: float64 [width], the scales of what it reads. writes: that of the stream that it adds to;
* `forward(x, places, kept)` for a token mixer, `forward(x)` for a channel mixer: int8 [B, T, width] -> int32 [B, T, width], in
  units of the stream;
* `flops(shape)`: operations of a pass, in the convention of `contract.cost`;
* `kept_width`, of a token mixer: int8 numbers that are kept of each token;
* `even = True`, of a token mixer that reads features of one scale alone.
"""

from typing import NamedTuple

from torch import Tensor

from shoestring.contract.cache import Pass

OUTPUT = "output"
"""The name of what the output matrix of a part reads."""


class PassPlaces(NamedTuple):
    """Where the tokens of a pass stand.

    coming: which tokens of each row are there and which are new.
    cos, sin: int16 [B, T, 1, head_width / 2] in 2^-14, of rotary positions; None where nothing is rotated.
    """

    coming: Pass
    cos: Tensor | None
    sin: Tensor | None

    def rows(self) -> list[tuple[int, int]]:
        """(row, tokens of it that are seen by its last new one) of each row."""
        each = zip(self.coming.held, self.coming.new, strict=True)
        return [(row, max(held + new, 1)) for row, (held, new) in enumerate(each)]
