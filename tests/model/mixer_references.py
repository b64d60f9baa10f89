"""Slow references of token and channel mixers written from their papers, one token at a time, in float64."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.config import Choice
from shoestring.model.rotary import Rotary, rotate
from tests.model.recurrent_references import RECURRENT
from tests.model.sparse_references import SPARSE

WIDTH, HEADS, HEAD, LENGTH = 12, 2, 8, 11

Reference = Callable[[Any, Tensor], Tensor]
"""(the part, x [T, width]) -> y [T, width]"""


def lightning(mixer: Any, x: Tensor) -> Tensor:
    slopes = [2 ** (-8 * (h + 1) / HEADS) * (1 - 1 / (3 + 1e-5) + 1e-5) for h in range(HEADS)]
    inner, rows = HEADS * HEAD, []
    state = [torch.zeros(HEAD, HEAD, dtype=x.dtype) for _ in range(HEADS)]
    for token in x:
        projected = mixer.qkv_gate.weight @ token
        q, k, v = F.silu(projected[: 3 * inner]).view(3, HEADS, HEAD)
        answers = []
        for h in range(HEADS):
            state[h] = math.exp(-slopes[h]) * state[h] + torch.outer(k[h], v[h])
            answers.append(state[h].T @ q[h])
        o = torch.cat(answers)
        normed = mixer.norm.weight * o / (o.square().mean() + mixer.norm.epsilon).sqrt()
        rows.append(mixer.output.weight @ (projected[3 * inner :].sigmoid() * normed))
    return torch.stack(rows)


def convolved(taps: Tensor, inputs: list[Tensor]) -> Tensor:
    """The last entry of a causal convolution."""
    count = taps.shape[1]
    return sum(
        (taps[:, count - 1 - back] * inputs[-1 - back] for back in range(min(count, len(inputs)))), torch.zeros(())
    )


def mamba2(mixer: Any, x: Tensor) -> Tensor:
    inner, state_size, heads, head, groups = mixer.inner, mixer.state, mixer.heads, mixer.head, mixer.groups
    state = torch.zeros(heads, state_size, head, dtype=x.dtype)
    seen: list[Tensor] = []
    rows = []
    for token in x:
        z, mixed, dt = (mixer.input.weight @ token).split([inner, inner + 2 * groups * state_size, heads])
        seen.append(mixed)
        mixed = F.silu(convolved(mixer.taps, seen) + mixer.taps_bias)
        values, b, c = mixed.split([inner, groups * state_size, groups * state_size])
        values, b, c = values.view(heads, head), b.view(groups, -1), c.view(groups, -1)
        dt = (1 + (dt + mixer.dt_bias).exp()).log()
        y = []
        for h in range(heads):
            state[h] = (-dt[h] * mixer.a_log[h].exp()).exp() * state[h] + dt[h] * torch.outer(
                b[h * groups // heads], values[h]
            )
            y.append(c[h * groups // heads] @ state[h] + mixer.skip[h] * values[h])
        gated = torch.cat(y) * z * z.sigmoid()
        normed = mixer.norm.weight * gated / (gated.square().mean() + mixer.norm.epsilon).sqrt()
        rows.append(mixer.output.weight @ normed)
    return torch.stack(rows)


def gated_delta(mixer: Any, x: Tensor) -> Tensor:
    inner = HEADS * HEAD
    state = torch.zeros(HEADS, HEAD, HEAD, dtype=x.dtype)
    seen: list[Tensor] = []
    rows = []
    for token in x:
        mixed, gate, step, strength = (mixer.input.weight @ token).split([3 * inner, inner, HEADS, HEADS])
        seen.append(mixed)
        q, k, v = F.silu(convolved(mixer.taps, seen)).view(3, HEADS, HEAD)
        o = []
        for h in range(HEADS):
            key, query = k[h] / k[h].norm(), q[h] / q[h].norm()
            a = (-mixer.a_log[h].exp() * (1 + (step[h] + mixer.dt_bias[h]).exp()).log()).exp()
            b = strength[h].sigmoid()
            erased = torch.eye(HEAD, dtype=x.dtype) - b * torch.outer(key, key)
            state[h] = a * erased @ state[h] + b * torch.outer(key, v[h])
            answer = state[h].T @ query / math.sqrt(HEAD)
            o.append(mixer.norm.weight * answer / (answer.square().mean() + mixer.norm.epsilon).sqrt())
        rows.append(mixer.output.weight @ (torch.cat(o) * gate * gate.sigmoid()))
    return torch.stack(rows)


def grouped_differential(mixer: Any, x: Tensor) -> Tensor:
    half, groups = HEAD // 2, 1
    projected = x @ mixer.qkv.weight.T
    signal, noise, keys, values = projected.split([HEADS * half, groups * half, 2 * groups * half, groups * HEAD], -1)
    tables = Rotary(half, LENGTH, 10000.0).double()(0, LENGTH)
    signal, noise, keys = (rotate(part.view(1, LENGTH, -1, half), *tables)[0] for part in (signal, noise, keys))
    start = 0.8 - 0.6 * math.exp(-0.3)
    a, b, c, d = mixer.mixes
    mix = (a @ b).exp() - (c @ d).exp() + start
    rows = []
    for t in range(LENGTH):
        o = []
        for h in range(HEADS):
            first = (keys[: t + 1, 0] @ signal[t, h] / math.sqrt(half)).softmax(0)
            second = (keys[: t + 1, 1] @ noise[t, 0] / math.sqrt(half)).softmax(0)
            found = (first - mix * second) @ values[: t + 1]
            normed = mixer.norm.weight * found / (found.square().mean() + mixer.norm.epsilon).sqrt()
            o.append((1 - start) * normed)
        rows.append(mixer.output.weight @ torch.cat(o))
    return torch.stack(rows)


def polynorm(mixer: Any, x: Tensor) -> Tensor:
    z = x @ mixer.input.weight.T
    total = mixer.shift
    for i in (1, 2, 3):
        total = total + mixer.powers[i - 1] * z**i / ((z**i).square().mean(-1, keepdim=True) + mixer.epsilon).sqrt()
    return total @ mixer.output.weight.T


def rational(part: Any, x: Tensor) -> Tensor:
    size = x.shape[-1] // len(part.above[0])
    found = torch.empty_like(x)
    for place in range(x.shape[-1]):
        group, z = place // size, x[:, place]
        above = sum(a[group] * z**power for power, a in enumerate(part.above))
        below = sum(b[group] * z ** (power + 1) for power, b in enumerate(part.below))
        found[:, place] = above / (1 + abs(below))
    return found


def group_rational(mixer: Any, x: Tensor) -> Tensor:
    return rational(mixer.second, rational(mixer.first, x) @ mixer.input.weight.T) @ mixer.output.weight.T


def normformer(mixer: Any, x: Tensor) -> Tensor:
    z = x @ mixer.input.weight.T
    z = z * (1 + (z / math.sqrt(2)).erf()) / 2
    z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, unbiased=False, keepdim=True) + mixer.norm.epsilon).sqrt()
    return (mixer.norm.weight * z + mixer.norm.bias) @ mixer.output.weight.T


def boom(mixer: Any, x: Tensor) -> Tensor:
    z = x @ mixer.input.weight.T + mixer.input.bias
    z = z / (1 + (-1.702 * z).exp())
    return mixer.output.weight * (z[:, :WIDTH] + z[:, WIDTH : 2 * WIDTH])


def moe(mixer: Any, x: Tensor) -> Tensor:
    each, rows = mixer.output.weight.shape[2], []
    for token in x:
        shares = (mixer.router.gate.weight @ token).softmax(0)
        best = sorted(range(mixer.experts), key=lambda e: -float(shares[e].detach()))[:2]
        total = sum(shares[e] for e in best)
        y = torch.zeros(WIDTH, dtype=x.dtype)
        for e in best:
            hidden = mixer.input.weight[e] @ token
            y = y + shares[e] / total * (mixer.output.weight[e] @ (F.silu(hidden[:each]) * hidden[each:]))
        rows.append(y)
    return torch.stack(rows)


def duo(mixer: Any, x: Tensor) -> Tensor:
    """Each token by the way that scores highest."""
    rows = []
    for token in x:
        way = int((mixer.router.weight @ token).argmax())
        if way == 0:
            rows.append(torch.zeros_like(token))
            continue
        layer = (mixer.small, mixer.big)[way - 1]
        gate, up = (layer.gate_up.weight @ token).chunk(2)
        rows.append(layer.output.weight @ (gate / (1 + (-gate).exp()) * up))
    return torch.stack(rows)


def lact(mixer: Any, x: Tensor) -> Tensor:
    """The networks' gradients by autograd."""
    inner, rows = HEADS * HEAD, []
    weights = [[w[h].detach().clone() for w in (mixer.gate, mixer.up, mixer.down)] for h in range(HEADS)]
    lengths = [[w.norm(dim=-1, keepdim=True) for w in own] for own in weights]

    def network(own: list[Tensor], u: Tensor) -> Tensor:
        return own[2] @ (F.silu(own[0] @ u) * (own[1] @ u))

    chunk: list[tuple[Tensor, Tensor, Tensor]] = []
    for token in x:
        projected = mixer.input.weight @ token
        q, k, v = F.silu(projected[: 3 * inner]).view(3, HEADS, HEAD).detach()
        rates = mixer.rate * (1 + (projected[3 * inner :] + 1).exp()).log().view(HEADS, 3).detach()
        answers = [network(own, q[h] / q[h].norm()) for h, own in enumerate(weights)]
        normed = [mixer.norm.weight * o / (o.square().mean() + mixer.norm.epsilon).sqrt() for o in answers]
        rows.append(mixer.output.weight @ torch.cat(normed))
        chunk.append((k, v, rates))
        if len(chunk) == mixer.chunk:
            for h in range(HEADS):
                own, steps = [w.requires_grad_() for w in weights[h]], [torch.zeros_like(w) for w in weights[h]]
                for k, v, rates in chunk:
                    gained = network(own, k[h] / k[h].norm()) @ v[h]
                    for place, gradient in enumerate(torch.autograd.grad(gained, own)):
                        steps[place] += rates[h, place] * gradient
                moved = [(w + step).detach() for w, step in zip(own, steps, strict=True)]
                weights[h] = [
                    w / w.norm(dim=-1, keepdim=True) * length for w, length in zip(moved, lengths[h], strict=True)
                ]
            chunk = []
    return torch.stack(rows)


def grouped(mixer: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [T, H, d], keys and values [T, Hk, d] of attention, normed and not rotated."""
    q, k, v = (x @ mixer.qkv.weight.T).view(LENGTH, -1, HEAD).split([HEADS, 1, 1], 1)
    norms = [
        norm.weight * part / (part.square().mean(-1, keepdim=True) + norm.epsilon).sqrt()
        for norm, part in ((mixer.query_norm, q), (mixer.key_norm, k))
    ]
    return norms[0], norms[1], v


def lolcats(mixer: Any, x: Tensor) -> Tensor:
    q, k, v = grouped(mixer, x)
    tables = Rotary(HEAD, LENGTH, 10000.0).double()(0, LENGTH)
    q, k = (rotate(part[None], *tables)[0] for part in (q, k))

    def features(own: Tensor, x: Tensor) -> Tensor:
        return torch.cat(((own @ x).softmax(0), (-own @ x).softmax(0)))

    rows = []
    for t in range(LENGTH):
        o = []
        for h in range(HEADS):
            asked = features(mixer.query_map.weight[h], q[t, h])
            near = range(max(0, t - mixer.window + 1), t + 1)
            scores = torch.stack([k[i, 0] @ q[t, h] / math.sqrt(HEAD) for i in near])
            weights = list(mixer.mix[h].sigmoid() * (scores - scores.max()).exp())
            far = range(near.start)
            weights = [asked @ features(mixer.key_map.weight[h], k[i, 0]) for i in far] + weights
            above = torch.stack([w * v[i, 0] for w, i in zip(weights, (*far, *near), strict=True)])
            o.append(above.sum(0) / torch.stack(weights).sum())
        rows.append(mixer.output.weight @ torch.cat(o))
    return torch.stack(rows)


def supra(mixer: Any, x: Tensor) -> Tensor:
    q, k, v = grouped(mixer, x)
    tables = Rotary(HEAD, LENGTH, 10000.0).double()(0, LENGTH)
    rows, state = [], torch.zeros(HEADS, HEAD, HEAD, dtype=x.dtype)
    for t in range(LENGTH):
        cos, sin = (table[t : t + 1] for table in tables)
        key = (mixer.key_map.weight[0] @ k[t, 0] + mixer.key_map.bias[0]).relu()
        key = rotate(key[None, None, None], cos, sin).flatten()
        o = []
        for h in range(HEADS):
            asked = (mixer.query_map.weight[h] @ q[t, h] + mixer.query_map.bias[h]).relu()
            asked = rotate(asked[None, None, None], cos, sin).flatten()
            state[h] = math.exp(-(2 ** (-8 * (h + 1) / HEADS))) * state[h] + torch.outer(key, v[t, 0]) / math.sqrt(HEAD)
            found = state[h].T @ asked
            o.append((found - found.mean()) / (found.var(unbiased=False) + mixer.epsilon).sqrt())
        rows.append(mixer.output.weight @ torch.cat(o))
    return torch.stack(rows)


def tied(mixer: Any, x: Tensor) -> Tensor:
    """Of the layer that leads, and of one that follows it with a gain."""
    follower = Choice.of("model", "tied", kind="channel mixer", leads=False, mixer="gelu").build(WIDTH, 28).double()
    with torch.no_grad():
        follower.gain.weight.copy_(torch.arange(WIDTH))
    trail: dict[str, Any] = {}
    rows = torch.stack([mixer.mixer.output.weight @ F.gelu(mixer.mixer.input.weight @ token) for token in x])
    mixer.route(x, trail)
    torch.testing.assert_close(follower(x, follower.route(x, trail)), rows * torch.arange(WIDTH))
    return rows


TOKEN_MIXERS: dict[str, tuple[Reference, dict[str, Any]]] = {
    "lightning": (lightning, {"chunk": 4}),
    "mamba2": (mamba2, {"chunk": 4, "state": 5, "expand": 2.0, "groups": 3}),
    "gated_delta": (gated_delta, {"chunk": 4}),
    "grouped_differential": (grouped_differential, {}),
    "lact": (lact, {"chunk": 4, "rate": 0.5}),
    "lolcats": (lolcats, {"features": 5, "window": 3}),
    "supra": (supra, {"chunk": 4}),
    **SPARSE,
    **RECURRENT,
}
SHARED_KEYS = {"grouped_differential", "infllm_v2", "lavo", "fixed_point", "mosa", "lolcats", "supra"}
"""Mixers whose heads share keys here."""
CHANNEL_MIXERS: dict[str, tuple[Reference, dict[str, Any]]] = {
    "moe": (moe, {"experts": 4}),
    "boom": (boom, {}),
    "duo": (duo, {"small": 0.25}),
    "polynorm": (polynorm, {}),
    "group_rational": (group_rational, {"groups": 4}),
    "normformer": (normformer, {}),
    "tied": (tied, {"mixer": "gelu"}),
}
ELSEWHERE = {"attention", "swiglu", "gelu", "squared_relu"}
"""Parts whose references are in test_model_parts.py."""


def scattered(part: Any) -> Any:
    """The part in float64, away from its start."""
    part.double()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return part
