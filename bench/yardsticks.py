"""What a training step is held against in throughput.py: the rate of matrix products, large ones and the model's own."""

from collections import Counter
from functools import partial

import torch
from torch.nn import functional as F

from shoestring.budget.machine import DTYPES, Machine, matmul_rate, timed
from shoestring.model.transformer import Transformer
from shoestring.objective.cross_entropy import Fused
from shoestring.train.config import RunConfig


def large_matrices(machine: Machine) -> float:
    """FLOP/s of large matrix products now, as `probe` measures them, in the machine's best precision."""
    cube = 8192 if machine.device == "cuda" else 2048
    return matmul_rate(cube, cube, cube, machine.best_precision, machine.device, 0.4)


def products_seconds(config: RunConfig, model: Transformer) -> float:
    """Seconds that the matrix products of the linear layers of one step take, each alone, back to back.

    For a layer of k inputs and m outputs on N tokens: [N, k] [k, m] forward, [N, m] [m, k] for the gradient of the input
    and [m, N] [N, k] for that of the weight. A fused loss takes the output layer in blocks of rows, and so does this.
    """
    tokens, device = config.train.batch * config.model.context, config.execution.device
    dtype = DTYPES[config.execution.precision]
    layers = (layer for layer in model.blocks.modules() if isinstance(layer, torch.nn.Linear))
    shapes = Counter((tokens, layer.in_features, layer.out_features) for layer in layers)
    rows = tokens if config.execution.loss == "plain" else min(tokens, Fused().rows_of(config.model.vocabulary))
    shapes[(rows, config.model.width, config.model.vocabulary)] += tokens // rows
    total = 0.0
    for (n, k, m), count in shapes.items():
        x, weight, gradient = (torch.randn(s, device=device).to(dtype) for s in ((n, k), (m, k), (n, m)))
        forward, back = partial(F.linear, x, weight), partial(torch.mm, gradient, weight)
        for work in (forward, back, partial(torch.mm, gradient.t(), x)):
            total += count * timed(work, device=device, seconds=0.05)
    return total
