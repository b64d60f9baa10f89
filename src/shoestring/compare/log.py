"""A file of one JSON object a line, only ever appended to: what a comparison has done so far."""

import json
import os
from collections.abc import Hashable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from shoestring.errors import ShoestringError
from shoestring.json_files import NotJson


class Record(Protocol):
    """A dataclass of JSON values. key: what tells it from every other of its log."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def key(self) -> Hashable: ...


R = TypeVar("R", bound=Record)


class Log(Generic[R]):
    """Records in the order they were made.

    A line is on the disk before `append` returns. A last line without its newline was torn by a kill: reading passes over
    it, and the next append cuts it away.

    path: None keeps them in memory only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._records: list[R] = []
        if path is not None:
            self._records = self._load(path)

    def parse(self, line: bytes) -> R:
        """The record of a line. Raises: ValueError, in one line."""
        raise NotImplementedError

    @staticmethod
    def _content(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise ShoestringError(f"{path} cannot be read: {error.strerror}") from None

    def _load(self, path: Path) -> list[R]:
        records: list[R] = []
        keys = set[Hashable]()
        for number, line in enumerate(self._content(path).split(b"\n")[:-1], start=1):
            try:
                record = self.parse(line)
            except ValueError as error:
                reason = "not JSON" if isinstance(error, NotJson) else error
                raise ShoestringError(f"{path}, line {number}, is damaged: {reason}") from None
            if record.key in keys:
                raise ShoestringError(f"{path}, line {number}, is damaged: the same run stands above it")
            keys.add(record.key)
            records.append(record)
        return records

    def read(self) -> list[R]:
        """All so far. Raises (here and when opened): ShoestringError, naming file and line, for a damaged one."""
        return list(self._records)

    def append(self, record: R) -> None:
        """Add one, on the disk before this returns. Raises: ShoestringError when it cannot be written."""
        if self.path is not None:
            line = json.dumps(asdict(record), allow_nan=False).encode() + b"\n"
            try:
                self._write(self.path, line)
            except OSError as error:
                raise ShoestringError(f"{self.path} cannot be written: {error.strerror}") from None
        self._records.append(record)

    def _write(self, path: Path, line: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = self._content(path)
        with open(path, "ab") as file:
            file.truncate(content.rfind(b"\n") + 1)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
