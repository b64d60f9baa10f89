"""What was curated, written down: documents with their columns as JSON lines or Parquet, those dropped with the reason; a card."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from shoestring import atomic
from shoestring.data.curated_folder import CARD, DOCUMENTS, FORMAT
from shoestring.data.curation.curate import Amount, Curated
from shoestring.errors import ShoestringError

Format = Literal["jsonl", "parquet"]

FILE = 1 << 28
"""Bytes of text in a file, about."""

ROWS = 1 << 10
"""Rows of a group of a Parquet file."""


class _Writer(Protocol):
    def add(self, row: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class _Lines:
    """JSON lines."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115, closed by `close`

    def add(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()


class _Parquet:
    """Parquet, a group of rows in memory."""

    def __init__(self, path: Path) -> None:
        self._path, self._rows = path, list[Mapping[str, Any]]()
        self._writer: Any = None

    def add(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow  # here, since it takes a while to import
        import pyarrow.parquet

        schema = None if self._writer is None else self._writer.schema
        table = pyarrow.Table.from_pylist(list(self._rows), schema=schema)
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self._path, table.schema, compression="zstd")
        self._writer.write_table(table)
        self._rows.clear()

    def close(self) -> None:
        if self._rows:
            self._flush()
        if self._writer is not None:
            self._writer.close()


class _Files:
    """Rows in files of about `FILE` bytes of text each, named by their number."""

    def __init__(self, folder: Path, kind: Format) -> None:
        folder.mkdir()
        self._folder, self._kind = folder, kind
        self._open: _Writer | None = None
        self._held = self._number = 0

    def add(self, row: Mapping[str, Any]) -> None:
        if self._open is None:
            make: Callable[[Path], _Writer] = _Lines if self._kind == "jsonl" else _Parquet
            self._open, self._held = make(self._folder / f"{self._number:05d}.{self._kind}"), 0
            self._number += 1
        self._open.add(row)
        self._held += len(row["text"])
        if self._held >= FILE:
            self.close()

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


def write(curated: Curated, folder: Path, card: Mapping[str, Any], kind: Format, *, dropped: bool) -> None:
    """Write a folder, whole or not at all: `documents/` in files of `kind`, `data-card.json`, and where `dropped`, those that were
    dropped in `dropped/`, each with its reason.

    A row has the text, its number in the corpus, and the columns that curators gave it. Raises: ShoestringError where the
    folder cannot be written.
    """
    try:
        with atomic.directory(folder) as half, ExitStack() as stack:
            kept = _Files(half / DOCUMENTS, kind)
            stack.callback(kept.close)
            gone = _Files(half / "dropped", kind) if dropped else None
            if gone is not None:
                stack.callback(gone.close)
            for number, text, row in _rows(curated, everything=dropped):
                if curated.kept[number]:
                    kept.add({"text": text, **row})
                elif gone is not None:
                    gone.add({"text": text, "reason": curated.reasons[curated.reason[number]], **row})
            stack.close()
            atomic.write_text(half / CARD, json.dumps({"format": FORMAT, "version": 1, **card}, indent=2) + "\n")
    except OSError as error:
        raise ShoestringError(f"{folder} cannot be written: {error.strerror or error}") from None


def _rows(curated: Curated, *, everything: bool) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(place, text, columns) of each document that is kept, or of all."""
    documents = curated.documents if everything else curated.remaining
    places = np.arange(len(curated.kept)) if everything else np.flatnonzero(curated.kept)
    for place, text in zip(places.tolist(), documents, strict=True):
        row: dict[str, Any] = {"number": int(curated.documents.numbers[place])}
        for name, value in curated.values.items():
            row[name] = _plain(value[place])
        yield place, text, row


def _plain(value: Any) -> Any:
    found = value.tolist()
    return None if isinstance(found, float) and found != found else found


def card(curated: Curated, corpus: str, options: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The data card: what there was, what each curator dropped and why, what is left, what it took.

    corpus: as it was named. options: how its text was read.
    """
    sizes = curated.documents.bytes
    return {
        "corpus": corpus,
        "read_as": dict(options),
        "content": curated.documents.digest,
        "documents": len(sizes),
        "bytes": int(sizes.sum()),
        "kept": _amount(Amount.of(sizes[curated.kept])),
        "curators": [
            {
                "name": step.name,
                "options": dict(step.options),
                "seen": _amount(step.seen),
                "dropped": {why: _amount(amount) for why, amount in step.dropped.items()},
                "seconds": round(step.seconds, 3),
                "spent": step.spent.as_dict(),
                "notes": list(step.notes),
            }
            for step in curated.steps
        ],
        "seconds": round(seconds, 3),
        "notes": list(curated.documents.notes),
    }


def _amount(amount: Amount) -> dict[str, int]:
    return {"documents": amount.documents, "bytes": amount.bytes}
