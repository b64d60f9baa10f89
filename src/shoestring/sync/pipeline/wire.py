"""Frames between the processes of a pipeline: a header, tensors as raw bytes, and a code made with the run's key.

A frame is 28 bytes of prefix (magic, bytes of the header, its code), a JSON header, which holds the code of the tensors, and
the tensors back to back. A code is a keyed BLAKE2b under the run's key: what was altered, or comes from one who does
not have the key, is refused, a header before anything it says is done. Nothing is unpickled.
"""

import contextlib
import hmac
import json
import math
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from shoestring.sync.transport.frame import code

PREFIX = struct.Struct("!4sQ16s")
MAGIC = b"SPL1"
LARGEST_HEADER = 1 << 24
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float64, torch.bfloat16, torch.float16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


class LinkClosed(OSError):
    """The other end is gone, or what came from it is not a frame of this run."""


@dataclass(frozen=True)
class Frame:
    """kind: what is asked or answered.
    order: the number of the order it belongs to.
    fields: JSON values.
    """

    kind: str
    order: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Link:
    """A connected socket that carries frames both ways; sending is safe from several threads, receiving is for one."""

    def __init__(self, connected: socket.socket, key: bytes) -> None:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._key, self._sending = connected, key, threading.Lock()

    def send(self, frame: Frame) -> int:
        """Send it, and return its bytes. Raises: LinkClosed."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in frame.tensors.items()}
        described = [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()]
        payload = [_bytes(tensor) for tensor in tensors.values() if tensor.numel()]
        mark = code(self._key, *payload).hex()
        header = json.dumps([frame.kind, frame.order, frame.fields, described, mark]).encode()
        start = PREFIX.pack(MAGIC, len(header), code(self._key, header)) + header
        try:
            with self._sending:
                self._socket.sendall(start)
                for part in payload:
                    self._socket.sendall(part)
        except OSError as error:
            raise LinkClosed(str(error)) from None
        return len(start) + sum(map(len, payload))

    def receive(self) -> Frame:
        """The next frame; waits for it. Raises: LinkClosed."""
        magic, size, mark = PREFIX.unpack(self._read(PREFIX.size))
        if magic != MAGIC or size > LARGEST_HEADER:
            raise LinkClosed("what came is no frame")
        header = self._read(size)
        if not hmac.compare_digest(mark, code(self._key, memoryview(header))):
            raise LinkClosed("a frame's header did not pass its check")
        kind, order, fields, described, mark = json.loads(header)
        shapes = [(name, DTYPES[dtype], shape) for name, dtype, shape in described]
        payload = [self._read(math.prod(shape) * dtype.itemsize) for _, dtype, shape in shapes]
        if not hmac.compare_digest(bytes.fromhex(mark), code(self._key, *[memoryview(part) for part in payload])):
            raise LinkClosed("a frame's tensors did not pass their check")
        return Frame(kind, order, fields, {s[0]: _tensor(p, *s[1:]) for s, p in zip(shapes, payload, strict=True)})

    def close(self) -> None:
        """Close both directions, which wakes a thread that receives."""
        with contextlib.suppress(OSError):  # the other end may have closed it first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self, size: int) -> bytearray:
        buffer = bytearray(size)
        view, done = memoryview(buffer), 0
        while done < size:
            try:
                count = self._socket.recv_into(view[done:])
            except OSError as error:
                raise LinkClosed(str(error)) from None
            if not count:
                raise LinkClosed("the connection was closed")
            done += count
        return buffer


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _tensor(payload: bytearray, dtype: torch.dtype, shape: list[int]) -> Tensor:
    return torch.frombuffer(payload, dtype=dtype).reshape(shape) if payload else torch.empty(shape, dtype=dtype)
