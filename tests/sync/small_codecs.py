"""Codecs, a model and links small enough to reason about, for the tests of the outer loop."""

import functools
import math
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from shoestring.sync.transport.base import Pending, Traffic, Transport
from shoestring.sync.transport.local import LocalGroup

STEP = 1 / 32


class Grid:
    """Every entry to the nearest multiple of STEP, ties to even, as int16: what is lost is plain to see."""

    fixed_size = rowwise = True

    def payload_bytes(self, shape: Sequence[int]) -> int:
        return 2 * math.prod(shape)

    def encode(self, values: Tensor) -> Tensor:
        return (values / STEP).round().to(torch.int16).reshape(-1).view(torch.uint8)

    def decode(self, payload: Tensor, shape: Sequence[int]) -> Tensor:
        if payload.numel() != self.payload_bytes(shape):
            raise ValueError("another length")
        return payload.clone().view(torch.int16).float().reshape(tuple(shape)) * STEP


class Sparse:
    """The entries that are not zero and their places: nothing is lost, and the size depends on the values."""

    fixed_size = rowwise = False

    def payload_bytes(self, shape: Sequence[int]) -> int:
        return 8 * math.prod(shape)

    def encode(self, values: Tensor) -> Tensor:
        flat = values.reshape(-1)
        places = flat.nonzero().reshape(-1)
        return torch.cat([places.to(torch.int32).view(torch.uint8), flat[places].contiguous().view(torch.uint8)])

    def decode(self, payload: Tensor, shape: Sequence[int]) -> Tensor:
        half = payload.numel() // 2
        if payload.numel() % 8:
            raise ValueError("no pairs")
        places = payload[:half].clone().view(torch.int32).long()
        flat = torch.zeros(math.prod(shape))
        if len(places) and not 0 <= int(places.min()) <= int(places.max()) < len(flat):
            raise ValueError("a place outside")
        flat[places] = payload[half:].clone().view(torch.float32)
        return flat.reshape(tuple(shape))


class Tower(nn.Module):
    """An embedding, four layers of a matrix and a vector each, a norm: enough for fragments."""

    def __init__(self, dtype: torch.dtype = torch.float32, layers: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(layers))
        self.norm = nn.LayerNorm(3)
        self.scale = nn.Parameter(torch.ones(()))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.to(dtype)


@functools.cache
def gradient(worker: int, step: int, place: int) -> float:
    """The mock gradient of one entry, whose place in the model is counted from 0."""
    return math.sin(0.7 * worker + 1.3 * step + 0.37 * place) + 0.2 * math.cos(0.11 * place) + 0.05 * worker


@functools.cache
def gradients(worker: int, step: int, count: int) -> Tensor:
    return torch.tensor([gradient(worker, step, place) for place in range(count)], dtype=torch.float64)


def give_gradients(model: nn.Module, worker: int, step: int) -> None:
    parameters = list(model.parameters())
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, values in zip(parameters, gradients(worker, step, sum(sizes)).split(sizes), strict=True):
        parameter.grad = values.reshape(parameter.shape).to(parameter.dtype)


class Tampered:
    """A transport whose exchanges pass through `change(number of the exchange, messages)` as they arrive."""

    def __init__(self, inner: Transport, change: Callable[[int, list[Tensor | None]], list[Tensor | None]]) -> None:
        self.inner, self.change, self.number = inner, change, -1

    @property
    def rank(self) -> int:
        return self.inner.rank

    @property
    def size(self) -> int:
        return self.inner.size

    @property
    def traffic(self) -> Traffic:
        return self.inner.traffic

    def exchange(self, messages: Sequence[Tensor], sizes: Sequence[int] | None, *, tag: int) -> Pending:
        self.number += 1
        pending, number, change = self.inner.exchange(messages, sizes, tag=tag), self.number, self.change

        class Changed:
            def done(self) -> bool:
                return pending.done()

            def result(self) -> list[Tensor | None]:
                return change(number, pending.result())

        return Changed()

    def close(self) -> None:
        self.inner.close()


class WaitingGroup(LocalGroup):
    """A group whose workers are threads: taking waits for the others, as on a real link. delay: called before a post."""

    def __init__(self, size: int, delay: Callable[[], None] = lambda: None) -> None:
        super().__init__(size)
        self.changed, self.delay = threading.Condition(), delay

    def post(self, number: int, rank: int, tag: int, messages: list[Tensor]) -> None:
        self.delay()
        with self.changed:
            super().post(number, rank, tag, messages)
            self.changed.notify_all()

    def take(self, number: int, rank: int) -> list[tuple[int, Tensor]]:
        with self.changed:
            self.changed.wait_for(lambda: self.all_posted(number), timeout=20)
            return super().take(number, rank)
