"""torch's attention where several heads of queries share keys and values."""

import torch
from torch import Tensor
from torch.nn import functional as F


def grouped_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """[B, Hq, T, D] of queries [B, Hq, T, D] and keys and values [B, Hk, S, D], where Hk divides Hq.

    mask: bool, of a shape that broadcasts to [B, Hq, T, S]. is_causal, scale: as `F.scaled_dot_product_attention` has them.

    A single token in 16 bits on a CPU is a case of its own: its heads of a group are asked as tokens of one head. torch's kernel
    for groups takes 4 to 6 times as long there (bench/grouped_attention.py); with more tokens, or in float32, it does not.
    """
    heads, shared = queries.shape[1], keys.shape[1]
    if heads == shared:
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=is_causal, scale=scale)
    narrow = queries.dtype in (torch.bfloat16, torch.float16) and queries.device.type == "cpu"
    if not (narrow and queries.shape[2] == 1 and not is_causal):
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=True
        )
    if mask is not None and mask.dim() == 4 and mask.shape[1] == heads:
        mask = mask.squeeze(2).unflatten(1, (shared, -1))
    asked = queries.squeeze(2).unflatten(1, (shared, -1))  # [B, Hk, G, D]
    found = F.scaled_dot_product_attention(asked, keys, values, attn_mask=mask, scale=scale)
    return found.flatten(1, 2)[:, :, None]
