"""The gated delta rule in chunks: a state that is corrected where a key is known already, and forgets.

S_t = a_t S_{t-1} + k_t u_t^T, with u_t = b_t (v_t - a_t S_{t-1}^T k_t), and o_t = S_t^T q_t. Within a chunk the u_t solve one
triangular system. Parallelizing Linear Transformers with the Delta Rule over Sequence Length, arXiv:2406.06484; with a decay:
Gated Delta Networks, arXiv:2412.06464.
"""

import torch
from torch import Tensor

from shoestring.model.fading import chunks, counts, fading

CHUNK = 32
"""Tokens of a chunk."""


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    strength: Tensor,
    log_decay: Tensor,
    *,
    state: Tensor | None = None,
    documents: Tensor | None = None,
    keep: bool = False,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor | None]:
    """(o [B, T, H, V], the state after the last token [B, H, K, V] where `keep`, else None).

    q, k: [B, T, H, K], keys of length 1 at most. v: [B, T, H, V]. strength: b, [B, T, H], in [0, 1]. log_decay: log a, [B, T, H].
    state, documents: as for `linear_recurrence`. A token of strength 0 that does not decay changes nothing.
    """
    length = q.shape[1]
    q, k, v, strength, log_decay = chunks((q, k, v, strength, log_decay), chunk)
    count = q.shape[2]
    gaps, into, out, through = fading(log_decay.cumsum(-1), documents)
    gaps = gaps.exp().to(q.dtype)
    mixed = (q @ k.transpose(-1, -2)) * gaps
    among = ((k @ k.transpose(-1, -2)) * gaps * strength[..., None].to(q.dtype)).tril(-1)
    wanted = torch.cat((v, k * into[..., None].exp().to(k.dtype)), -1) * strength[..., None].to(v.dtype)
    wide = torch.promote_types(q.dtype, torch.float32)  # the solver has no half precision
    solved = torch.linalg.solve_triangular(among.to(wide), wanted.to(wide), upper=False, unitriangular=True)
    own, read = solved.to(v.dtype).split((v.shape[-1], k.shape[-1]), -1)
    carried = q * into[..., None].exp().to(q.dtype)
    written = (k * out[..., None].exp().to(k.dtype)).transpose(-1, -2)
    held = None if state is None else state.to(q.dtype)
    found = []
    for number in range(count):
        update = own[:, :, number]
        if held is not None:
            update = update - read[:, :, number] @ held
        answer = mixed[:, :, number] @ update
        found.append(answer if held is None else answer + carried[:, :, number] @ held)
        if keep or number < count - 1:
            added = written[:, :, number] @ update
            held = added if held is None else held * through[:, :, number, None, None].exp().to(added.dtype) + added
    return torch.stack(found, 2).permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :length], held if keep else None


def delta_rule_flops(
    rows: int,
    length: int,
    heads: int,
    key_width: int,
    value_width: int,
    backward: bool,
    *,
    past: int = 0,
    chunk: int = CHUNK,
) -> int:
    """Operations of `delta_rule`; without a backward pass, as it is with a cache. A triangular solve is C² (K + V).

    past: tokens read before.
    """
    size, count, read, written = counts(length, chunk, past, backward)
    product = size * key_width * value_width
    inside = count * size * size * (2 * key_width + value_width) + product * (2 * read + written)
    solved = count * size * size * (key_width + value_width)
    return rows * heads * ((6 if backward else 2) * inside + (4 if backward else 1) * solved)
