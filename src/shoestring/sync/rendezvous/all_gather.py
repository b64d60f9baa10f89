"""All-gather of plain values: each worker gives JSON values, and all of them get every worker's."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.sync.transport.base import Pending, Transport

FIRST_TAG = 2**40
"""Tags from here on are of plain values: exchanges of tensors, numbered from 0, never reach it."""


def all_gather(transport: Transport, content: Any, *, number: int) -> list[Any]:
    """Every worker's content, by rank.

    content: JSON values.
    number: of this all-gather in the run: the same at all workers, and each once.

    Raises: PeerLost; ShoestringError where a message came damaged.
    """
    return decode(start_all_gather(transport, content, number=number).result())


def start_all_gather(transport: Transport, content: Any, *, number: int) -> Pending:
    """Begin an `all_gather`. `decode` makes values of its result."""
    message = torch.frombuffer(bytearray(json.dumps(content).encode()), dtype=torch.uint8)
    return transport.exchange([message] * transport.size, None, tag=FIRST_TAG + number)


def decode(messages: Sequence[Tensor | None]) -> list[Any]:
    """Every worker's content, by rank. Raises: ShoestringError where a message came damaged."""
    found = []
    for rank, each in enumerate(messages):
        try:
            found.append(json.loads(bytes((each if each is not None else torch.empty(0, dtype=torch.uint8)).tolist())))
        except ValueError:
            raise ShoestringError(f"the message of worker {rank} arrived damaged") from None
    return found
