"""SOAP as Algorithm 3 of arXiv:2409.11321 has it, with the refinements of its authors' code; one matrix, in float64."""

import math

import torch
from torch import Tensor


def qr_refresh(factor: Tensor, basis: Tensor, second: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Algorithm 4: the columns by estimated eigenvalue, one step of power iteration, QR; V's `axis` in their order.

    The factor's diagonal is raised by 64 rounding errors of float32 for each of its columns, times its largest eigenvalue.
    """
    eigenvalues = torch.diag(basis.T @ factor @ basis)
    order = sorted(range(len(eigenvalues)), key=lambda i: -eigenvalues[i].item())
    raised = factor + 64 * 2.0**-23 * len(order) * eigenvalues.max() * torch.eye(len(order)).double()
    q, _ = torch.linalg.qr(raised @ basis[:, order])
    return q, second[order, :] if axis == 0 else second[:, order]


def soap(
    weight: Tensor,
    gradients: list[Tensor],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    every: int,
    first_bases: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """first_bases: Q_L and Q_R after the first gradient (which eigenvectors of a degenerate factor is anybody's choice);
    None: that side is not rotated. The momentum is kept unrotated, as the algorithm says."""
    w = weight.double()
    rows, columns = w.shape
    left, right = (None if q is None else q.double() for q in first_bases)
    q_left = torch.eye(rows).double() if left is None else left
    q_right = torch.eye(columns).double() if right is None else right
    first = gradients[0].double()
    l_factor, r_factor = (1 - beta2) * first @ first.T, (1 - beta2) * first.T @ first
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, gradient in enumerate(gradients[1:], start=1):
        g = gradient.double()
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * (q_left.T @ g @ q_right) ** 2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        direction = (q_left.T @ m_hat @ q_right) / (v_hat.sqrt() + epsilon)
        w = w - lr * (q_left @ direction @ q_right.T + weight_decay * w)
        l_factor = beta2 * l_factor + (1 - beta2) * g @ g.T
        r_factor = beta2 * r_factor + (1 - beta2) * g.T @ g
        if t % every == 0 or (t < every and math.log2(t).is_integer()):
            if left is not None:
                q_left, v = qr_refresh(l_factor, q_left, v, 0)
            if right is not None:
                q_right, v = qr_refresh(r_factor, q_right, v, 1)
    return w
