"""Causal attention written out, in two chunks of queries: for a compiler to fuse.

torch's CPU flash kernel is slow in its backward pass, bfloat16 above all. Written out as matrix products and a softmax,
and compiled, the same attention took about half its time in a one-off timing at 256 tokens; a run's own measurement
(`train/settling.py`) decides whether it is used. The first half of the queries
never meets the second half of the keys, which saves a quarter of the square.
"""

import math

import torch
from torch import Tensor

LONGEST = 512
"""Tokens above which the scores, [B, heads, T/2, T] at a time, outgrow the caches and flash is the better one."""


def chunked_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v, causal. q: [B, Hq, T, D]; k, v: [B, Hk, T, D], Hk dividing Hq -> [B, Hq, T, D]."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    length = q.shape[2]
    middle = (length + 1) // 2
    parts = [_chunk(q[:, :, :middle], k[:, :, :middle], v[:, :, :middle], 0)]
    if middle < length:
        parts.append(_chunk(q[:, :, middle:], k, v, middle))
    return torch.cat(parts, dim=2)


def _chunk(q: Tensor, k: Tensor, v: Tensor, first: int) -> Tensor:
    """The attention of the queries that stand at first, first + 1 ... to the keys up to the last of them."""
    scores = (q @ k.mT).float() * (1 / math.sqrt(q.shape[-1]))
    queries = torch.arange(first, first + q.shape[2], device=q.device)
    seen = queries[:, None] >= torch.arange(k.shape[2], device=q.device)
    weights = torch.where(seen, scores, -torch.inf).softmax(-1)
    return weights.to(v.dtype) @ v
