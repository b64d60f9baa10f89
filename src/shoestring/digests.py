"""Digests of files: equal digests are equal contents."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from shoestring.errors import ShoestringError


def digest_of(paths: Sequence[Path]) -> str:
    """The SHA-256 of files one after the other, their lengths among it. Raises: ShoestringError where one cannot be read."""
    whole = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as file:
                whole.update(f"{path.stat().st_size}\n".encode())
                whole.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ShoestringError(f"{path} cannot be read: {error.strerror}") from None
    return whole.hexdigest()
