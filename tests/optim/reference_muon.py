"""Muon as written down by Jordan et al. (2024) and Liu et al. (2025), one matrix at a time, in float64."""

import math

import torch
from torch import Tensor


def newton_schulz(m: Tensor, triples: list[tuple[float, float, float]], margin: float = 1.0) -> Tensor:
    x = m.double()
    if m.shape[0] > m.shape[1]:
        x = x.T
    x = x / (margin * math.sqrt((x * x).sum().item()) + 1e-7)
    for a, b, c in triples:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if m.shape[0] > m.shape[1] else x


def muon(
    weight: Tensor,
    gradients: list[Tensor],
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    scaling: str,
) -> Tensor:
    """Momentum as the papers sum it, M <- mu M + G: the polar factor does not see the constant 1 - mu."""
    w = weight.double()
    total = torch.zeros_like(w)
    for gradient in gradients:
        g = gradient.double()
        total = momentum * total + g
        update = newton_schulz(g + momentum * total if nesterov else total, [(3.4445, -4.7750, 2.0315)] * 5)
        rows, columns = w.shape
        scale = math.sqrt(max(1.0, rows / columns)) if scaling == "spectral" else 0.2 * math.sqrt(max(rows, columns))
        w = w - lr * (scale * update + weight_decay * w)
    return w
