"""Healing: a worker that joins, or comes back, fetches the run's state from one that has it."""

import json
import socket
import struct
import threading
import time
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.rendezvous.admission import RunFingerprint
from shoestring.sync.rendezvous.handshake import Malformed, accept_worker, connect_to_host, receive_line, send_line
from shoestring.sync.rendezvous.listener import Listener
from shoestring.sync.transport.frame import HEADER_BYTES, CorruptFrame, derive_key, open_frame, seal

State = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""What all workers hold alike: tensors by name, and plain values that JSON can hold."""

_LENGTH = struct.Struct("<Q")
_RECEIVERS = 8
LONGEST = 600.0
"""The most seconds that a worker keeps a request waiting for a state that it does not offer yet."""
_VALUES = "values"


def pack(state: State) -> Tensor:
    """A state as safetensors, uint8 [bytes]: a copy, so the state may change afterwards. The values are JSON in its metadata.

    Raises: ShoestringError for values that JSON cannot hold.
    """
    tensors, values = state
    try:
        text = json.dumps(values, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ShoestringError(f"the state's values cannot be sent: {error}") from None
    # cloned: safetensors refuses tensors that share memory, as tied weights do
    alone = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    return torch.frombuffer(bytearray(save(alone, metadata={_VALUES: text})), dtype=torch.uint8)


def unpack(packed: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state that `pack` packed. Raises: ShoestringError where `packed` is none."""
    whole = packed.numpy().tobytes()
    try:
        tensors = load(whole)
        (length,) = _LENGTH.unpack_from(whole)
        values = json.loads(json.loads(whole[_LENGTH.size : _LENGTH.size + length])["__metadata__"][_VALUES])
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise ShoestringError(f"what was received is no state: {error}") from None
    if not isinstance(values, dict):
        raise ShoestringError("what was received is no state: its values are no JSON object")
    return tensors, values


class Healing:
    """Sends this worker's state to those that need it, from memory and by a thread, and fetches one from another worker.

    A connection begins with the handshake. The state travels as safetensors in one frame under the key of that connection
    alone: neither an altered state nor an earlier one passes, and nothing is unpickled.

    host: the address to listen at, by which the other workers reach this machine.
    token: the run's.
    fingerprint: of the run.
    limit: the most bytes of a state.
    timeout: seconds that a handshake may take.

    Raises: UsageError without a token, or where it cannot listen there.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        *,
        token: str,
        fingerprint: RunFingerprint,
        limit: int = 2**36,
        timeout: float = 5.0,
    ) -> None:
        if not token:
            raise UsageError("a run whose workers heal each other needs a token")
        self._key, self._fingerprint, self._limit, self._timeout = derive_key(token), fingerprint, limit, timeout
        self._offer: tuple[int, Tensor, float] | None = None
        self._changed = threading.Condition()
        self._listener = Listener(
            (host, 0),
            lambda link: accept_worker(link, self._key, fingerprint, timeout=timeout),
            self._serve,
            max_handshakes=_RECEIVERS,
        )

    @property
    def address(self) -> str:
        """Where to fetch the state from: 'host:port'."""
        host, port = self._listener.address
        return f"{host}:{port}"

    def offer(self, step: int, state: State, *, timeout: float) -> None:
        """Offer the state of a step until `withdraw`, to every worker that requests that step. Returns at once.

        step: rounds that the state has applied.
        timeout: seconds that each transfer may take.
        """
        packed = pack(state)
        with self._changed:
            self._offer = (step, packed, timeout)
            self._changed.notify_all()

    def withdraw(self) -> None:
        """Withdraw the offer. Transfers under way go on, for they have a copy."""
        with self._changed:
            self._offer = None

    def fetch(self, address: str, step: int, *, rank: int, timeout: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state of a step, from the worker at `address`.

        address: 'host:port'.
        rank: this worker's own.
        timeout: seconds for all of it.

        Raises: ShoestringError where it did not come whole in time, is over the limit or is of another step.
        """
        deadline = time.monotonic() + timeout
        host, _, port = address.rpartition(":")
        request = {"step": step, "rank": rank, "seconds": timeout}
        handshake_timeout = min(timeout, self._timeout)
        link, key = connect_to_host((host, int(port)), self._key, self._fingerprint, request, timeout=handshake_timeout)
        try:
            size = receive_line(link, deadline).get("bytes")
            if not isinstance(size, int) or not 0 < size <= self._limit:
                raise Malformed(f"a state of {size} bytes: at most {self._limit} are taken")
            frame = torch.empty(HEADER_BYTES + size, dtype=torch.uint8)
            _fill(link, frame.numpy().data, deadline)
            return unpack(open_frame(frame, key=key, tag=step, sender=rank))
        except (OSError, Malformed, CorruptFrame) as error:
            raise ShoestringError(f"the state of step {step} did not come from {address}: {error}") from None
        finally:
            link.close()

    def close(self) -> None:
        """Stop listening and close all connections."""
        self._listener.close()

    def _serve(self, link: socket.socket, accepted: tuple[dict[str, Any], bytes]) -> None:
        request, key = accepted
        step, rank, seconds = (request.get(word) for word in ("step", "rank", "seconds"))
        if not isinstance(step, int) or not isinstance(rank, int) or not isinstance(seconds, int | float):
            raise Malformed("no 'step', 'rank' or 'seconds'")
        with self._changed:
            # the receiver may know the quorum before this worker does
            self._changed.wait_for(lambda: self._offer is not None and self._offer[0] == step, min(seconds, LONGEST))
            offer = self._offer
        if offer is None or offer[0] != step:
            return
        _, packed, allowed = offer
        link.settimeout(allowed)
        send_line(link, {"bytes": packed.numel()})
        link.sendall(seal(packed, key=key, tag=step, sender=rank).numpy().data)


def _fill(link: socket.socket, buffer: memoryview, deadline: float) -> None:
    filled = 0
    while filled < len(buffer):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"{filled} of {len(buffer)} bytes came in time")
        link.settimeout(left)
        count = link.recv_into(buffer[filled:])
        if not count:
            raise ConnectionResetError(f"the other side closed the connection after {filled} of {len(buffer)} bytes")
        filled += count
