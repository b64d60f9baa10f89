"""Ternary matrices as the blocks of GGUF: TQ1_0 and TQ2_0, the types of llama.cpp that hold -1, 0 and 1.

A row is cut into blocks of 256 weights with one float16 scale d each; weight i is d (t_i - 1), t_i in {0, 1, 2}. The layouts
are those of ggml's block_tq2_0 and block_tq1_0 (llama.cpp, ggml/src/ggml-common.h); the `gguf` package's numpy quantiser
makes the same bytes of the same weights, which the tests hold this to.

* TQ2_0, 66 bytes, 2.0625 bits a weight: of each half of 128 weights, byte m of 32 holds t_m, t_(m+32), t_(m+64), t_(m+96), the
  first in its lowest two bits; after the 64 bytes, d.
* TQ1_0, 54 bytes, 1.6875 bits a weight: 32 bytes hold t_m, t_(m+32) ... t_(m+128); 16 hold t_(160+m), t_(176+m) ...
  t_(224+m); 4 hold t_(240+m), t_(244+m), t_(248+m), t_(252+m) and nothing fifth; then d. Five trits are the number
  q = 81 t_1 + 27 t_2 + 9 t_3 + 3 t_4 + t_5, stored as ceil(256 q / 243): multiplied by 3 in eight bits, it carries t_1 out.
"""

import torch
from torch import Tensor

from shoestring.errors import ShoestringError

BLOCK = 256
BLOCK_BYTES = {"TQ1_0": 54, "TQ2_0": 66}


def blocks(matrix: Tensor, kind: str) -> Tensor:
    """uint8 [rows, columns / 256 * BLOCK_BYTES[kind]]: `matrix`, float32 [rows, columns], as blocks of a kind.

    Raises: ShoestringError where the columns are no multiple of 256, a block holds more than 0 and one number of either sign,
    or that number is none that float16 has room for.
    """
    rows, columns = matrix.shape
    if columns % BLOCK:
        raise ShoestringError(f"{kind} has blocks of {BLOCK} columns, and {columns} is no multiple of that")
    cut = matrix.float().reshape(-1, BLOCK)
    codes, scales = cut.sign(), _scales(cut)
    if not is_ternary(matrix):
        raise ShoestringError(
            f"{kind} holds one number and its negative in a block of {BLOCK} columns, and this matrix more"
        )
    narrow = scales.half()
    if not narrow.isfinite().all() or bool(((narrow == 0) & (scales != 0)).any()):
        raise ShoestringError(f"{kind} has a float16 scale, which cannot hold {float(scales.max()):.3g}")
    trits = (codes + 1).to(torch.int32)
    body = _two_bits(trits) if kind == "TQ2_0" else _five_a_byte(trits)
    return torch.cat([body, narrow.view(torch.uint8)], -1).reshape(rows, columns // BLOCK * BLOCK_BYTES[kind])


def is_ternary(matrix: Tensor) -> bool:
    """Whether every block of 256 columns holds 0 and one number of either sign alone; a NaN is no number."""
    if matrix.shape[1] % BLOCK:
        return False
    cut = matrix.float().reshape(-1, BLOCK)
    return torch.equal(cut.sign() * _scales(cut), cut)


def _scales(cut: Tensor) -> Tensor:
    """The largest absolute value of each block, [blocks, 1]."""
    return cut.abs().amax(-1, keepdim=True) if cut.numel() else cut[:, :1]


def rounding(matrix: Tensor) -> float:
    """By how much, relatively, float16 moves the scales of the blocks at most: 2^-11 in its normal range."""
    scales = _scales(matrix.float().reshape(-1, BLOCK))
    scales = scales[scales > 0]
    return float(((scales.half().float() - scales).abs() / scales).max()) if len(scales) else 0.0


def _two_bits(trits: Tensor) -> Tensor:
    """[blocks, 64] from [blocks, 256]."""
    places = trits.view(-1, 2, 4, 32)
    powers = torch.tensor([1, 4, 16, 64], dtype=torch.int32)
    return (places * powers[:, None]).sum(2).view(-1, 64).to(torch.uint8)


def _five_a_byte(trits: Tensor) -> Tensor:
    """[blocks, 52] from [blocks, 256]."""
    powers = torch.tensor([81, 27, 9, 3, 1], dtype=torch.int32)
    numbers = []
    for first, width, count in ((0, 32, 5), (160, 16, 5), (240, 4, 4)):
        places = trits[:, first : first + width * count].view(-1, count, width)
        numbers.append((places * powers[:count, None]).sum(1))
    return ((torch.cat(numbers, -1) * 256 + 242) // 243).to(torch.uint8)
