"""How two processes of a run meet: each proves that it holds the run's token, the newcomer shows what it trains.

A connection opens with three lines of JSON, each of at most `LINE` bytes; N_h, N_w are 16 random bytes of the host and of
the worker that comes, K the key that both derive from the run's token, HMAC is HMAC-SHA256 (Krawczyk, Bellare, Canetti,
'HMAC: Keyed-Hashing for Message Authentication', RFC 2104):

    host -> worker   {nonce: N_h}
    worker -> host   {nonce: N_w, passport, request, proof: HMAC(K, 'worker' | N_h | N_w | passport | request)}
    host -> worker   {refused: '' or why, proof: HMAC(K, 'host' | N_h | N_w | refused)}

and goes on as what was asked for. Neither side shows the token; a recording is of no use later, for the nonces differ; and
both derive a key of this connection alone, HMAC(K, 'connection' | N_h | N_w).
"""

import hmac
import json
import secrets
import socket
import time
from collections.abc import Mapping
from typing import Any, Protocol

from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.admission import DIFFERENCES

LINE = 4096
NONCE = 16
_RETRY = 0.2
_ANOTHER_TOKEN = "its token is not the run's"


class Passport(Protocol):
    """What a worker shows: the version of the program, and fingerprints of its recipe, its model's shape and its data.

    `admission.Passport` is one; how many workers a run has is not asked where they come and go.
    """

    @property
    def version(self) -> str: ...

    @property
    def recipe(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def data(self) -> str: ...


_SHOWN = ("version", "recipe", "model", "data")


class Refused(UsageError):
    """This worker may not take part in the run; the line says why."""


class Malformed(ShoestringError):
    """What was said is not what is said at such a meeting."""


def difference(run: Passport, shown: Mapping[str, str]) -> str:
    """Why a worker that shows this cannot take part in the run; '' where it can."""
    if shown["version"] != run.version:
        theirs = shown["version"][:32]
        return f"the run is of shoestring {run.version}, this worker of {theirs}: all workers of a run need the same version"
    for field, text in DIFFERENCES.items():
        ours, theirs = getattr(run, field), shown[field]
        if ours != theirs:
            return f"this worker {text} than the run (fingerprints {theirs[:8] or 'none'} and {ours[:8] or 'none'})"
    return ""


def say(link: socket.socket, message: Mapping[str, Any]) -> None:
    """Send one line. Raises: Malformed for one that is too long; OSError."""
    line = json.dumps(message).encode() + b"\n"
    if len(line) > LINE:
        raise Malformed(f"a line of {len(line)} bytes: at most {LINE} are taken")
    link.sendall(line)


def hear(link: socket.socket, deadline: float) -> dict[str, Any]:
    """One line, a table of plain values, by the `time.monotonic()` of the deadline; nothing after it is read.

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
            raise ConnectionResetError("the other side hung up")
        line += byte
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise Malformed("not a line of JSON") from None
    if not isinstance(message, dict):
        raise Malformed("not a table")
    return message


def _word(message: Mapping[str, Any], key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        raise Malformed(f"no '{key}'")
    return value


def _table(message: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = message.get(key)
    if not isinstance(value, dict) or not all(isinstance(each, str | int | float) for each in value.values()):
        raise Malformed(f"no '{key}'")
    return value


def _proof(key: bytes, role: str, nonces: str, *said: object) -> str:
    return hmac.digest(key, json.dumps([role, nonces, *said], sort_keys=True).encode(), "sha256").hex()


def _proven(message: Mapping[str, Any], key: bytes, role: str, nonces: str, *said: object) -> bool:
    return hmac.compare_digest(_proof(key, role, nonces, *said), _word(message, "proof"))


def admit(link: socket.socket, key: bytes, passport: Passport, *, patience: float) -> tuple[dict[str, Any], bytes]:
    """The host's side: what the worker asks for, and the key [32 bytes] of this connection.

    patience: seconds for all of it. Raises: Refused (the worker has been told why), Malformed, OSError.
    """
    deadline = time.monotonic() + patience
    link.settimeout(patience)
    ours = secrets.token_hex(NONCE)
    say(link, {"nonce": ours})
    answer = hear(link, deadline)
    nonces = ours + _word(answer, "nonce")
    papers, request = _table(answer, "passport"), _table(answer, "request")
    if _proven(answer, key, "worker", nonces, papers, request):
        refused = difference(passport, {field: _word(papers, field) for field in _SHOWN})
    else:
        refused = _ANOTHER_TOKEN
    say(link, {"refused": refused, "proof": _proof(key, "host", nonces, refused)})
    if refused:
        raise Refused(refused)
    link.settimeout(None)
    return request, bytes.fromhex(_proof(key, "connection", nonces))


def enter(
    address: tuple[str, int], key: bytes, passport: Passport, request: Mapping[str, Any], *, patience: float
) -> tuple[socket.socket, bytes]:
    """The worker's side: a connection that has been let in, and its key. Tries again while the host is busy.

    Raises: Refused; ShoestringError where nothing answers within `patience` seconds, or not as a host does.
    """
    where = f"{address[0]}:{address[1]}"
    deadline = time.monotonic() + patience
    while True:
        try:
            link = socket.create_connection(address, timeout=max(deadline - time.monotonic(), _RETRY))
            try:
                return link, _introduce(link, key, passport, request, deadline)
            except BaseException:
                link.close()
                raise
        except OSError as error:
            if time.monotonic() + _RETRY > deadline:
                raise ShoestringError(f"no way in at {where}: {error}") from None
            time.sleep(_RETRY)
        except Refused as error:
            raise Refused(f"refused at {where}: {error}") from None
        except Malformed as error:
            raise Malformed(f"{where} is not a run's: {error}") from None


def _introduce(
    link: socket.socket, key: bytes, passport: Passport, request: Mapping[str, Any], deadline: float
) -> bytes:
    theirs = _word(hear(link, deadline), "nonce")
    ours = secrets.token_hex(NONCE)
    nonces = theirs + ours
    papers = {field: getattr(passport, field) for field in _SHOWN}
    proof = _proof(key, "worker", nonces, papers, request)
    say(link, {"nonce": ours, "passport": papers, "request": request, "proof": proof})
    reply = hear(link, deadline)
    refused = _word(reply, "refused")
    if not _proven(reply, key, "host", nonces, refused):
        raise Refused(_ANOTHER_TOKEN)
    if refused:
        raise Refused(refused)
    link.settimeout(None)
    return bytes.fromhex(_proof(key, "connection", nonces))
