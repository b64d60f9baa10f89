"""Slow references of attention that sees some keys, one query and head at a time."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shoestring.model.rotary import Rotary, rotate

Reference = Callable[[Any, Tensor], Tensor]


def heads_of(mixer: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q [T, Hq, D], k and v [T, Hk, D]: projected, normed, turned."""
    length, each = len(x), mixer.head_width
    q, k, v = (x @ mixer.qkv.weight.T).view(length, -1, each).split(mixer.split, 1)
    tables = Rotary(each, length, 10000.0).double()(0, length)

    def normed(part: Tensor, norm: Any) -> Tensor:
        return norm.weight * part / (part.square().mean(-1, keepdim=True) + norm.epsilon).sqrt()

    q, k = (rotate(normed(part, norm)[None], *tables)[0] for part, norm in ((q, mixer.query_norm), (k, mixer.key_norm)))
    return q, k, v


def answer(query: Tensor, keys: Tensor, values: Tensor, seen: list[int]) -> Tensor:
    """Softmax attention of one query to the keys at these places."""
    return (keys[seen] @ query / math.sqrt(len(query))).softmax(0) @ values[seen]


def infllm_v2(mixer: Any, x: Tensor) -> Tensor:
    q, k, v = heads_of(mixer, x)
    heads, shared = mixer.split[0], mixer.split[1]
    group, size, rows = heads // shared, mixer.block, []
    for t in range(len(x)):
        answers, own = [], t // size
        for h in range(heads):
            g = h // group
            blocks = list(range(own + 1))
            if t >= mixer.dense:
                means = torch.stack([k[j * size : (j + 1) * size, g].mean(0) for j in range(own)])
                shares: Any = sum(
                    (means @ q[t, other] / math.sqrt(q.shape[-1])).softmax(0)
                    for other in range(g * group, (g + 1) * group)
                )
                forced = [j for j in blocks if j < mixer.first or j > own - mixer.window]
                others = sorted((j for j in blocks if j not in forced), key=lambda j: -float(shares[j].detach()))
                blocks = forced + others[: mixer.seen - len(forced)]
            seen = [s for j in sorted(blocks) for s in range(j * size, (j + 1) * size) if s <= t]
            answers.append(answer(q[t, h], k[:, g], v[:, g], seen))
        rows.append(mixer.output.weight @ torch.cat(answers))
    return torch.stack(rows)


def dense(mixer: Any, x: Tensor) -> Tensor:
    q, k, v = heads_of(mixer, x)
    group = mixer.split[0] // mixer.split[1]
    rows = []
    for t in range(len(x)):
        seen = list(range(t + 1))
        answers = [answer(q[t, h], k[:, h // group], v[:, h // group], seen) for h in range(mixer.split[0])]
        rows.append(mixer.output.weight @ torch.cat(answers))
    return torch.stack(rows)


def mosa(mixer: Any, x: Tensor) -> Tensor:
    """As while training."""
    y, length, each = dense(mixer, x), len(x), mixer.head_width
    tables = Rotary(each, length, 10000.0).double()(0, length)
    for h in range(mixer.sparse_heads):
        scores = x @ mixer.router.weight[h]
        best = sorted(range(length), key=lambda t: -float(scores[t].detach()))
        taken = sorted(best[: math.ceil(mixer.share * length)])
        q, k, v = (x @ mixer.sparse_qkv.weight[h].T).split(each, -1)
        q, k = (rotate(part[None, :, None], *tables)[0, :, 0] for part in (q, k))
        for t in taken:
            a = answer(q[t], k, v, [s for s in taken if s <= t])
            y = y.index_add(0, torch.tensor([t]), scores[t].sigmoid() * (mixer.sparse_output.weight[h] @ a)[None])
    return y


def s2_attention(mixer: Any, x: Tensor) -> Tensor:
    q, k, v = heads_of(mixer, x)
    group, size, rows = mixer.split[0] // mixer.split[1], mixer.block, []
    for t in range(len(x)):
        answers = []
        for h in range(mixer.split[0]):
            g = h // group
            near = [s for s in range(t + 1) if t // size - s // size < mixer.window]
            far = [s for s in range(t + 1) if (s // size) % mixer.stride == g % mixer.stride and s not in near]
            answers.append(answer(q[t, h], k[:, g], v[:, g], near + far))
        rows.append(mixer.output.weight @ torch.cat(answers))
    return torch.stack(rows)


def lavo(mixer: Any, x: Tensor) -> Tensor:
    length, each, size, basis = len(x), mixer.head_width, mixer.window, mixer.basis
    q, k, v = (x @ mixer.qkv.weight.T).view(length, -1, each).split(mixer.split, 1)
    tables = Rotary(each, length, 10000.0).double()(0, length)
    turned, local = (rotate(part[None], *tables)[0] for part in (q, k))
    heads, shared = mixer.split[0], mixer.split[1]
    _, to_keys, to_values = mixer.qkv.weight.split([count * each for count in mixer.split])
    rows = []
    for t in range(length):
        start, answers = t // size * size, []
        slots = [] if not start else [(b @ x[:start].mean(0)) * b for b in basis]
        for h in range(heads):
            g = h * shared // heads
            own = slice(g * each, (g + 1) * each)
            scores = [local[s, g] @ turned[t, h] for s in range(start, t + 1)]
            scores += [to_keys[own] @ slot @ q[t, h] for slot in slots]
            values = [v[s, g] for s in range(start, t + 1)] + [to_values[own] @ slot for slot in slots]
            answers.append((torch.stack(scores) / math.sqrt(each)).softmax(0) @ torch.stack(values))
        rows.append(mixer.output.weight @ torch.cat(answers))
    return torch.stack(rows)


def fixed_point(mixer: Any, x: Tensor) -> Tensor:
    """Each token until its own answer stays."""
    length, each, heads = len(x), mixer.head_width, mixer.split[0]
    _, k, v = heads_of(mixer, x)
    cos, sin = Rotary(each, length, 10000.0).double()(0, length)
    to_queries, output = mixer.qkv.weight[: heads * each], mixer.output.weight
    rows = []
    for t in range(length):

        def asked(token: Tensor, t: int = t) -> Tensor:
            q = (to_queries @ token).view(heads, each)
            q = mixer.query_norm.weight * q / (q.square().mean(-1, keepdim=True) + mixer.query_norm.epsilon).sqrt()
            q = rotate(q[None, None], cos[t : t + 1], sin[t : t + 1])[0, 0]
            seen, group = list(range(t + 1)), heads // mixer.split[1]
            return torch.cat([answer(q[h], k[:, h // group], v[:, h // group], seen) for h in range(heads)])

        z = asked(x[t])
        for _ in range(mixer.most - 1):
            before, z = z, asked(x[t] + output @ z)
            if (z - before).norm() <= mixer.tolerance * before.norm():
                break
        rows.append(output @ asked(x[t] + output @ z))
    return torch.stack(rows)


SPARSE: dict[str, tuple[Reference, dict[str, Any]]] = {
    "infllm_v2": (infllm_v2, {"block": 2, "first_blocks": 1, "window_blocks": 2, "top_blocks": 1, "dense_length": 3}),
    "s2_attention": (s2_attention, {"block": 2, "window_blocks": 2, "stride": 2}),
    "lavo": (lavo, {"window": 3, "directions": 5}),
    "fixed_point": (fixed_point, {"tolerance": 0.05, "most": 6}),
    "mosa": (mosa, {"sparse_heads": 3, "share": 0.3}),
}
