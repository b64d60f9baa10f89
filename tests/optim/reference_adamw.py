"""AdamW straight from Algorithm 2 of arXiv:1711.05101, one number at a time, in Python's floats."""

import math


def adamw(
    weight: float, gradients: list[float], *, lr: float, beta1: float, beta2: float, epsilon: float, weight_decay: float
) -> float:
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        m_hat = m / (1 - beta1**t)
        v_hat = v / (1 - beta2**t)
        weight = weight - lr * (m_hat / (math.sqrt(v_hat) + epsilon) + weight_decay * weight)
    return weight
