"""Slow references of mixers with a running state, one token at a time."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Reference = Callable[[Any, Tensor], Tensor]


def layer_norm(norm: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.epsilon)


def sha_rnn(mixer: Any, x: Tensor) -> Tensor:
    size = mixer.inner
    cell = torch.nn.LSTMCell(x.shape[1], size).double()
    with torch.no_grad():
        cell.weight_ih.copy_(mixer.input.weight)
        cell.weight_hh.copy_(mixer.again.weight)
        cell.bias_ih.copy_(mixer.input.bias)
        cell.bias_hh.zero_()
    h, c = torch.zeros(2, 1, size, dtype=x.dtype)
    memory: list[Tensor] = []
    rows = []
    a_q, a_k, a_v = mixer.gains
    for token in x:
        h, c = cell(token[None], (h, c))
        memory.append(layer_norm(mixer.memory_norm, h[0]))
        z = layer_norm(mixer.middle_norm, h[0])
        q = a_q.sigmoid() * layer_norm(mixer.query_norm, mixer.query.weight @ z + mixer.query.bias)
        scores = torch.stack([(a_k.sigmoid() * m) @ q for m in memory]) / math.sqrt(size)
        attended = sum(share * a_v * m for share, m in zip(scores.softmax(0), memory, strict=True))
        rows.append(mixer.output.weight @ (z + attended))
    return torch.stack(rows)


def srwm(mixer: Any, x: Tensor) -> Tensor:
    """Each of the four parts of the matrix by itself."""
    d, heads, rows = mixer.head_width, mixer.heads, []
    parts = [list(mixer.start[h].split([d, d, d, 4])) for h in range(heads)]
    for token in x:
        answers, given = [], (mixer.input.weight @ token).view(heads, d)
        for h in range(heads):
            phi = given[h].softmax(0)
            y, k, q, beta = (part @ phi for part in parts[h])
            key, query = k.softmax(0), q.softmax(0)
            parts[h] = [
                part + beta[n].sigmoid() * torch.outer(part @ query - part @ key, key)
                for n, part in enumerate(parts[h])
            ]
            answers.append(y)
        rows.append(mixer.output.weight @ torch.cat(answers))
    return torch.stack(rows)


def long_convolution(mixer: Any, x: Tensor) -> Tensor:
    inner, taps = mixer.inner, mixer.length
    squashed = mixer.kernel.sign() * (mixer.kernel.abs() - mixer.squash).clamp_min(0)
    kernel = torch.stack([squashed[:, max(0, j - mixer.smooth) : j + mixer.smooth + 1].mean(1) for j in range(taps)], 1)
    seen: list[Tensor] = []
    products: list[Tensor] = []
    rows = []
    for token in x:
        seen.append(mixer.input.weight @ token)
        mixed = sum((mixer.taps[:, 2 - back] * seen[-1 - back] for back in range(min(3, len(seen)))), torch.zeros(()))
        q, k, v = mixed.split(inner)
        products.append(k * v)
        reach = range(min(taps, len(products)))
        found = sum((kernel[:, j] * products[-1 - j] for j in reach), torch.zeros(()))
        rows.append(mixer.output.weight @ (q * (found + mixer.skip * products[-1])))
    return torch.stack(rows)


def mlp_mixer(mixer: Any, x: Tensor) -> Tensor:
    a, b = mixer.first.weight, mixer.output.weight
    hidden: list[Tensor] = []
    rows = []
    for t in range(len(x)):
        hidden.append(F.gelu(sum((a[t, r] * x[r] for r in range(t + 1)), mixer.bias[t])))
        rows.append(sum((b[t, s] * hidden[s] for s in range(t + 1)), torch.zeros(())))
    return torch.stack(rows)


def efficient_attention(mixer: Any, x: Tensor) -> Tensor:
    each = x.shape[1] // mixer.heads
    first, second = (torch.dot(mixer.gains[n], mixer.gains[n + 1]).exp() for n in (0, 2))
    rows = []
    for t in range(len(x)):
        q, attended = mixer.query.weight @ x[t], []
        for h in range(mixer.heads):
            own = slice(h * each, (h + 1) * each)
            weights = torch.stack([x[s, own] @ q[own] / math.sqrt(each) for s in range(t + 1)]).softmax(0)
            attended.append(sum((weights[s] * x[s, own] for s in range(t + 1)), torch.zeros(())))
        near = F.silu(
            sum(
                (mixer.taps[:, mixer.kernel - 1 - j] * x[t - j] for j in range(min(mixer.kernel, t + 1))),
                torch.zeros(()),
            )
        )
        rows.append(mixer.output.weight @ torch.cat((first * torch.cat(attended), -second * near)))
    return torch.stack(rows)


RECURRENT: dict[str, tuple[Reference, dict[str, Any]]] = {
    "sha_rnn": (sha_rnn, {"attention": True, "inner": 7}),
    "long_convolution": (long_convolution, {"length": 7, "squash": 0.1, "smooth": 1, "by": "monarch"}),
    "srwm": (srwm, {"chunk": 4}),
    "mlp_mixer": (mlp_mixer, {}),
    "efficient_attention": (efficient_attention, {"kernel": 4}),
}
