"""The baseline of time_to_loss.py: how a nanoGPT-style script trains, in plain PyTorch."""

import math
import time

import torch
from torch.nn import functional as F

from shoestring.data.store import TokenStore
from shoestring.data.windows import Windows
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer


def rate_factor(share: float) -> float:
    """Of the peak learning rate: 2 % linear warm-up, then a cosine to 10 %, over the elapsed share of the time."""
    return min(share / 0.02, 0.55 + 0.45 * math.cos(math.pi * max(share - 0.02, 0) / 0.98))


@torch.no_grad()
def gpt2_weights(model: Transformer) -> None:
    """nanoGPT's first weights: normal, 0.02; what writes to the residual stream 0.02 / sqrt(2 layers)."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            depth = math.sqrt(2 * model.config.layers) if name.endswith(".output") else 1.0
            torch.nn.init.normal_(module.weight, std=0.02 / depth)


def train(
    config: ModelConfig,
    store: TokenStore,
    *,
    seed: int,
    peak: float,
    batch: int,
    seconds: float,
    device: str,
    bf16: bool,
    own_init: bool,
) -> tuple[Transformer, int, float]:
    """(model, steps, seconds taken): trained for `seconds` of wall-clock; the step that crosses the end is finished."""
    start = time.monotonic()
    torch.manual_seed(seed)
    model = Transformer(config)
    if own_init:
        gpt2_weights(model)
    model.to(device)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=True)
    windows = Windows(store, config.context, seed, "stream")
    step = 0
    while (share := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = peak * rate_factor(share)
        data = windows.batch(step * batch, batch).to(device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            logits = model(data.inputs.values)
            loss = F.cross_entropy(logits.float().flatten(0, 1), data.targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()  # or the clock would run ahead of the work
        step += 1
    return model, step, time.monotonic() - start
