"""Plain values between workers: what each has to say, to all."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.sync.transport.base import Pending, Transport

FIRST_TAG = 2**40
"""Tags from here on are of plain values: exchanges of tensors, numbered from 0, never come so far."""


def share(transport: Transport, content: Any, *, number: int) -> list[Any]:
    """Every worker's content, JSON values, by rank. number: of this occasion in the run, the same at all workers, each once.

    Raises: PeerLost; ShoestringError where a message came damaged.
    """
    return hear(tell(transport, content, number=number).result())


def tell(transport: Transport, content: Any, *, number: int) -> Pending:
    """Begin to `share`; `hear` makes values of what comes."""
    message = torch.frombuffer(bytearray(json.dumps(content).encode()), dtype=torch.uint8)
    return transport.exchange([message] * transport.size, None, tag=FIRST_TAG + number)


def hear(messages: Sequence[Tensor | None]) -> list[Any]:
    """Every worker's content, by rank. Raises: ShoestringError where a message came damaged."""
    found = []
    for rank, each in enumerate(messages):
        try:
            found.append(json.loads(bytes((each if each is not None else torch.empty(0, dtype=torch.uint8)).tolist())))
        except ValueError:
            raise ShoestringError(f"what worker {rank} had to say came damaged") from None
    return found
