"""What a server allows, and what its engines have."""

import hashlib
import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shoestring.decode.cache_budget import CacheConfig
from shoestring.decode.engine import ROWS, TOKENS
from shoestring.errors import UsageError

KEYS = "SHOESTRING_API_KEYS"
"""The variable that holds keys, with commas between them."""


class Keys:
    """Keys of which a client must have one. None of them is kept as it is.

    keys: none at all let everybody in.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __contains__(self, key: str) -> bool:
        """Whether it is one of them; the time that this takes tells nothing of which, or of how nearly."""
        digest = _digest(key)
        return sum([hmac.compare_digest(digest, own) for own in self._digests]) > 0

    @classmethod
    def read(cls, path: Path | None) -> "Keys":
        """Those of a file, one a line, or else those of the environment. Raises: UsageError."""
        if path is None:
            return cls(_checked(os.environ.get(KEYS, "").split(","), f"the variable {KEYS}"))
        try:
            lines = path.read_text().splitlines()
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UsageError(f"{path} is not text: it holds one key a line") from None
        found = _checked(lines, str(path))
        if not found:
            raise UsageError(f"{path} holds no key: it holds one a line")
        return cls(found)


def _checked(keys: Sequence[str], where: str) -> list[str]:
    found = [key.strip() for key in keys if key.strip()]
    if not all(key.isascii() and key.isprintable() and " " not in key for key in found):
        raise UsageError(f"{where} has a key with letters that no header can hold: use printable ASCII without spaces")
    return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True)
class Settings:
    """What a server allows, and what the engine of each of its models has.

    rows: answers that are worked on at a time. tokens: places of a pass. room: tokens kept, of all; None: the engine's own choice.
    cache: how much of them is kept, and how.
    drafter: by name; None: no drafts. draft: the place of the draft model or file that it needs.
    answer: tokens of an answer to a chat where the request does not say. queue: answers that may wait.
    body: bytes of a request. body_seconds: that it may take to arrive.
    keys: of clients.
    hosts: names that a request may call this server by; None: any. Without it, a page from elsewhere could have a browser talk to a
        server that listens for this machine alone, under a name that it made point here.
    """

    rows: int = ROWS
    tokens: int = TOKENS
    room: int | None = None
    cache: CacheConfig = field(default_factory=CacheConfig)
    drafter: str | None = None
    draft: str | None = None
    depth: str | None = None
    routers: str | None = None
    mixture: str | None = None
    datastore: str | None = None
    answer: int = 512
    queue: int = 256
    body: int = 4 << 20
    body_seconds: float = 30.0
    keys: Keys = field(default_factory=Keys)
    hosts: frozenset[str] | None = None
