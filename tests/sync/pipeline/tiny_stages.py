"""A model of a few hundred weights cut into stages, its batches, and the same training in one process."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.sync.pipeline.batch import MicroBatch
from shoestring.sync.pipeline.route import in_order

TOKENS, WIDTH, MICROS = 13, 8, 4


class Body(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(self.norm(x)))


class Loss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, TOKENS)

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())


def make(stages: int = 4, seed: int = 0) -> tuple[nn.Module, list[nn.Module], nn.Module]:
    torch.manual_seed(seed)
    return nn.Embedding(TOKENS, WIDTH), [Body() for _ in range(stages)], Loss()


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=3e-2, weight_decay=0.1)


def batches(step: int) -> list[MicroBatch]:
    chance = torch.Generator().manual_seed(step)
    made = []
    for rows in (1, 2, 2, 3)[:MICROS]:  # unequal, so that the shares matter
        ids = torch.randint(TOKENS, (rows, 6), generator=chance)
        made.append(MicroBatch(ids, (ids * 3 + 1) % TOKENS))
    return made


def tokens_of(step: int) -> int:
    return sum(micro.tokens for micro in batches(step))


def gradients(modules: Sequence[nn.Module], step: int, route: Callable[[int, int], list[int]]) -> float:
    """Add the gradients of a step's batch to the modules, in one process; its loss."""
    stages, micros = len(modules) - 2, batches(step)
    total = 0.0
    for number, micro in enumerate(micros):
        x = micro.inputs
        for part in route(step * len(micros) + number, stages)[:-1]:
            x = modules[part](x)
        loss = modules[-1](x, micro.targets)
        share = micro.tokens / tokens_of(step)
        (loss * share).backward()
        total += loss.item() * share
    return total


class OneProcess:
    """The reference: the same modules, optimisers and micro-batches without a pipeline."""

    def __init__(
        self,
        modules: Sequence[nn.Module],
        route: Callable[[int, int], list[int]] = lambda _, stages: in_order(stages),
        clip: float | None = None,
    ) -> None:
        self.modules, self.route, self.clip, self.step = list(modules), route, clip, 0
        self.optimizers = [adamw(module) for module in self.modules]

    def train_step(self, lr_factor: float = 1.0) -> float:
        loss = gradients(self.modules, self.step, self.route)
        if self.clip is not None:
            nn.utils.clip_grad_norm_([p for m in self.modules for p in m.parameters()], self.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 3e-2 * lr_factor
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss


def weights(modules: Sequence[nn.Module]) -> list[dict[str, Tensor]]:
    """Copies of the weights of every part."""
    return [{name: tensor.clone() for name, tensor in module.state_dict().items()} for module in modules]
