"""K workers in one thread, in lock-step, on mock gradients: what the tests of DiLoCo share."""

import json
from typing import Any

import torch
from safetensors.torch import load, save
from small_codecs import STEP, Grid, Tower, give_gradients
from torch import Tensor

from shoestring.sync.diloco import DiLoCo
from shoestring.sync.feedback import ErrorFeedback
from shoestring.sync.flight import Round
from shoestring.sync.fragments import Fragments
from shoestring.sync.lockstep import Lockstep
from shoestring.sync.transport.local import LocalGroup

INNER_LR = 0.05


class Run:
    """K workers in lock-step on mock gradients, with SGD inside."""

    def __init__(self, workers: int, *, dtype: torch.dtype = torch.float32, group: Any = None, **options: Any) -> None:
        self.group = group or LocalGroup(workers)
        self.models = [Tower(dtype) for _ in range(workers)]
        self.inner = [torch.optim.SGD(model.parameters(), lr=INNER_LR, momentum=0.0) for model in self.models]
        self.workers = [
            DiLoCo(model, inner, transport=self.transport(rank), **options)
            for rank, (model, inner) in enumerate(zip(self.models, self.inner, strict=True))
        ]
        self.lockstep = Lockstep(self.workers)
        self.rounds: list[list[Round]] = []

    def transport(self, rank: int) -> Any:
        return self.group.transports[rank]

    def inner_step(self) -> None:
        for rank, (model, inner) in enumerate(zip(self.models, self.inner, strict=True)):
            give_gradients(model, rank, self.workers[rank].steps + 1)
            inner.step()

    def step(self, times: int = 1) -> "Run":
        for _ in range(times):
            self.inner_step()
            self.rounds += self.lockstep.step([{"rank": rank} for rank in range(len(self.workers))])
        return self

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.workers[0].weights

    def state(self) -> list[bytes]:
        """All that there is, bit for bit: local weights, and the outer state."""
        return [
            save({**kept(worker)[0], **{f"local.{n}": p.detach() for n, p in model.named_parameters()}})
            for worker, model in zip(self.workers, self.models, strict=True)
        ]


def kept(worker: DiLoCo) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A saved state, through the bytes of its files."""
    tensors, values = worker.state_dict()
    return load(save({name: tensor.contiguous() for name, tensor in tensors.items()})), json.loads(json.dumps(values))


def grid(value: float) -> float:
    return round(value / STEP) * STEP


MATRICES = {name: grid for name, parameter in Tower().named_parameters() if parameter.ndim >= 2}


HARD: dict[str, Any] = {
    "every": 6,
    "codec": Grid(),
    "feedback": ErrorFeedback(0.9),
    "fragments": Fragments("strided", 3),
    "overlap": 4,
}
