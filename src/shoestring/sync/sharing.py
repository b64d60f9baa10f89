"""Plain values between workers: what each has to say, to all."""

import json
from typing import Any

import torch

from shoestring.errors import ShoestringError
from shoestring.sync.transport.base import Transport

FIRST_TAG = 2**40
"""Tags from here on are of plain values: exchanges of tensors, numbered from 0, never come so far."""


def share(transport: Transport, content: Any, *, number: int) -> list[Any]:
    """Every worker's content, JSON values, by rank. number: of this occasion in the run, the same at all workers, each once.

    Raises: PeerLost; ShoestringError where a message came damaged.
    """
    message = torch.frombuffer(bytearray(json.dumps(content).encode()), dtype=torch.uint8)
    pending = transport.exchange([message] * transport.size, None, tag=FIRST_TAG + number)
    found = []
    for rank, each in enumerate(pending.result()):
        try:
            found.append(json.loads(bytes((each if each is not None else torch.empty(0, dtype=torch.uint8)).tolist())))
        except ValueError:
            raise ShoestringError(f"what worker {rank} had to say came damaged") from None
    return found
