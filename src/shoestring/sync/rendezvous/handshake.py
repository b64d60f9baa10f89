"""The handshake between two processes of a run: each proves that it has the run's token, the worker says what it trains.

A connection begins with three lines of JSON, each of at most `LINE` bytes. N_h and N_w are 16 random bytes of the host and of
the worker that connects. K is the key that both derive from the run's token. HMAC is HMAC-SHA256 (Krawczyk, Bellare, Canetti,
'HMAC: Keyed-Hashing for Message Authentication', RFC 2104):

    host -> worker   {nonce: N_h}
    worker -> host   {nonce: N_w, fingerprint, request, proof: HMAC(K, 'worker' | N_h | N_w | fingerprint | request)}
    host -> worker   {refused: '' or why, proof: HMAC(K, 'host' | N_h | N_w | refused)}

After that it carries what was requested. Neither side shows the token. A recording is of no use later, as the nonces differ.
Both sides derive a key of this connection alone, HMAC(K, 'connection' | N_h | N_w).
"""

import hmac
import json
import secrets
import socket
import time
from collections.abc import Mapping
from typing import Any

from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.rendezvous.admission import DIFFERENCES, RunFingerprint

LINE = 4096
NONCE = 16
_RETRY = 0.2
_OTHER_TOKEN = "its token is not the run's"

_SENT = ("version", "recipe", "model", "data")
"""The fields that a worker sends. How many workers a run has is not compared where they come and go."""


class Refused(UsageError):
    """This worker may not take part in the run; the line says why."""


class Malformed(ShoestringError):
    """What was received is no message of this handshake."""


def difference(run: RunFingerprint, shown: Mapping[str, str]) -> str:
    """Why a worker with these fields cannot take part in the run; '' where it can."""
    if shown["version"] != run.version:
        theirs = shown["version"][:32]
        return f"the run is of shoestring {run.version}, this worker of {theirs}: all workers of a run need the same version"
    for field, text in DIFFERENCES.items():
        ours, theirs = getattr(run, field), shown[field]
        if ours != theirs:
            return f"this worker {text} than the run (fingerprints {theirs[:8] or 'none'} and {ours[:8] or 'none'})"
    return ""


def send_line(link: socket.socket, message: Mapping[str, Any]) -> None:
    """Send one line. Raises: Malformed where it is too long; OSError."""
    line = json.dumps(message).encode() + b"\n"
    if len(line) > LINE:
        raise Malformed(f"a line of {len(line)} bytes: at most {LINE} are taken")
    link.sendall(line)


def receive_line(link: socket.socket, deadline: float) -> dict[str, Any]:
    """One line, a JSON object of plain values; nothing after it is read.

    deadline: of `time.monotonic()`.
    Raises: OSError, of which TimeoutError is one; Malformed.
    """
    line = bytearray()
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the other side is too slow")
        if len(line) >= LINE:
            raise Malformed("a line without an end")
        link.settimeout(left)
        byte = link.recv(1)
        if not byte:
            raise ConnectionResetError("the other side closed the connection")
        line += byte
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise Malformed("not a line of JSON") from None
    if not isinstance(message, dict):
        raise Malformed("not a JSON object")
    return message


def _text(message: Mapping[str, Any], key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        raise Malformed(f"no '{key}'")
    return value


def _fields(message: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = message.get(key)
    if not isinstance(value, dict) or not all(isinstance(each, str | int | float) for each in value.values()):
        raise Malformed(f"no '{key}'")
    return value


def _proof(key: bytes, role: str, nonces: str, *content: object) -> str:
    return hmac.digest(key, json.dumps([role, nonces, *content], sort_keys=True).encode(), "sha256").hex()


def _proven(message: Mapping[str, Any], key: bytes, role: str, nonces: str, *content: object) -> bool:
    return hmac.compare_digest(_proof(key, role, nonces, *content), _text(message, "proof"))


def accept_worker(
    link: socket.socket, key: bytes, fingerprint: RunFingerprint, *, timeout: float
) -> tuple[dict[str, Any], bytes]:
    """The host's side. Returns what the worker requests, and the key of this connection, 32 bytes.

    key: derived from the run's token.
    fingerprint: of the run.
    timeout: seconds for the whole handshake.

    Raises: Refused (the worker has been told why), Malformed, OSError.
    """
    deadline = time.monotonic() + timeout
    link.settimeout(timeout)
    ours = secrets.token_hex(NONCE)
    send_line(link, {"nonce": ours})
    answer = receive_line(link, deadline)
    nonces = ours + _text(answer, "nonce")
    shown, request = _fields(answer, "fingerprint"), _fields(answer, "request")
    if _proven(answer, key, "worker", nonces, shown, request):
        refused = difference(fingerprint, {field: _text(shown, field) for field in _SENT})
    else:
        refused = _OTHER_TOKEN
    send_line(link, {"refused": refused, "proof": _proof(key, "host", nonces, refused)})
    if refused:
        raise Refused(refused)
    link.settimeout(None)
    return request, bytes.fromhex(_proof(key, "connection", nonces))


def connect_to_host(
    address: tuple[str, int], key: bytes, fingerprint: RunFingerprint, request: Mapping[str, Any], *, timeout: float
) -> tuple[socket.socket, bytes]:
    """The worker's side. Returns an accepted connection, and its key, 32 bytes. Tries again while the host is busy.

    key: derived from the run's token.
    fingerprint: of what this worker trains.
    request: plain values that say what the connection is for.
    timeout: seconds for the whole handshake, tries included.

    Raises: Refused; ShoestringError where nothing answers in time, or not as a host does.
    """
    where = f"{address[0]}:{address[1]}"
    deadline = time.monotonic() + timeout
    while True:
        try:
            link = socket.create_connection(address, timeout=max(deadline - time.monotonic(), _RETRY))
            try:
                return link, _prove(link, key, fingerprint, request, deadline)
            except BaseException:
                link.close()
                raise
        except OSError as error:
            if time.monotonic() + _RETRY > deadline:
                raise ShoestringError(f"no connection to {where}: {error}") from None
            time.sleep(_RETRY)
        except Refused as error:
            raise Refused(f"refused at {where}: {error}") from None
        except Malformed as error:
            raise Malformed(f"no run answers at {where}: {error}") from None


def _prove(
    link: socket.socket, key: bytes, fingerprint: RunFingerprint, request: Mapping[str, Any], deadline: float
) -> bytes:
    theirs = _text(receive_line(link, deadline), "nonce")
    ours = secrets.token_hex(NONCE)
    nonces = theirs + ours
    shown = {field: getattr(fingerprint, field) for field in _SENT}
    proof = _proof(key, "worker", nonces, shown, request)
    send_line(link, {"nonce": ours, "fingerprint": shown, "request": request, "proof": proof})
    reply = receive_line(link, deadline)
    refused = _text(reply, "refused")
    if not _proven(reply, key, "host", nonces, refused):
        raise Refused(_OTHER_TOKEN)
    if refused:
        raise Refused(refused)
    link.settimeout(None)
    return bytes.fromhex(_proof(key, "connection", nonces))
