"""Documents by number, with columns: text that is streamed as often as it is asked for, and what is known of each."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash

from shoestring.data.corpus import Corpus
from shoestring.data.curation.account import Account, OutOfTime
from shoestring.data.curation.column_folder import ColumnFolder
from shoestring.data.reading import READER
from shoestring.data.store import TokenStore
from shoestring.data.subset import document_bounds
from shoestring.data.text_batches import batched
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import ShoestringError
from shoestring.log_lines import held_back

BATCH = 1 << 20
"""Characters of text that are looked at together."""

PART = 1 << 26
"""Characters of text whose columns are kept at a time: what a kill costs at most."""

PART_DOCUMENTS = 1 << 16
"""Documents whose columns are kept at a time, at most."""

Fields = Mapping[str, np.ndarray]


class Source(Protocol):
    """Texts in an order that does not change.

    notes: what was left out, replaced or cut as they were last read to the end, a line each.
    """

    notes: list[str]

    def stamp(self) -> str:
        """A name for their present state, had without reading them."""
        ...

    def texts(self) -> Iterator[str]:
        """The texts, none of them empty, a bounded amount in memory."""
        ...


class CorpusSource:
    """The documents of a corpus. name: what the stamp depends on beside its files (options of its text)."""

    def __init__(self, corpus: Corpus, name: str) -> None:
        self.corpus, self.name = corpus, name
        self.notes: list[str] = []

    def stamp(self) -> str:
        return f"{self.name} {self.corpus.stamp()}"

    def texts(self) -> Iterator[str]:
        with held_back(READER) as told:
            yield from self.corpus.documents()
        self.notes = told


class StoreSource:
    """The documents of a prepared split, decoded: their numbers are those that `data.subset` takes. A document without text is a
    line feed."""

    def __init__(self, store: TokenStore, tokenizer: TextTokenizer, fingerprint: str) -> None:
        self.store, self.tokenizer, self.fingerprint = store, tokenizer, fingerprint
        self.notes: list[str] = []

    def stamp(self) -> str:
        return self.fingerprint

    def texts(self) -> Iterator[str]:
        bounds = document_bounds(self.store)
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            ids = self.store.rows(np.array([start]), stop - start)[0, :-1].tolist()
            yield self.tokenizer.decode(ids) or "\n"


class Documents:
    """Some documents of a source, by number, in the source's order.

    source: of the text, which is read anew each time and never held.
    columns: where what is worked out is kept.
    numbers: int64 [n], of these documents in the source, ascending.
    bytes: int64 [n], of UTF-8 text of each.
    content: uint64 [n, 2], a digest of the text of each.
    notes: what was left out, replaced or cut as the source was read, a line each.
    """

    def __init__(
        self,
        source: Source,
        columns: ColumnFolder,
        numbers: np.ndarray,
        size: np.ndarray,
        content: np.ndarray,
        notes: Sequence[str],
    ) -> None:
        self.source, self.columns, self.notes = source, columns, notes
        self.numbers, self.bytes, self.content = numbers, size, content
        self.digest = hashlib.sha256(np.ascontiguousarray(content).tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[str]:
        """The texts. Raises: ShoestringError where the source is not what it was when it was first read."""
        return self.texts()

    def texts(self, start: int = 0) -> Iterator[str]:
        """The texts from place `start` of these documents on."""
        wanted, place = self.numbers, start
        if place >= len(wanted):
            return
        following = int(wanted[place])
        for number, text in enumerate(self.source.texts()):
            if number != following:
                continue
            if xxhash.xxh3_128_digest(text.encode()) != self.content[place].tobytes():
                break
            yield text
            place += 1
            if place == len(wanted):
                return
            following = int(wanted[place])
        raise ShoestringError("the corpus changed while it was being read: run this again")

    def batches(self, start: int = 0) -> Iterator[list[str]]:
        """The texts from place `start` on, in lists of about `BATCH` characters."""
        yield from batched(self.texts(start), BATCH)

    def only(self, kept: np.ndarray) -> "Documents":
        """Those of these documents that are kept. kept: bool [n]."""
        if kept.all():
            return self
        return Documents(
            self.source, self.columns, self.numbers[kept], self.bytes[kept], self.content[kept], self.notes
        )

    def sample(self, count: int, seed: int = 0) -> np.ndarray:
        """int64, ascending: places of at most `count` documents, an even draw by a hash of their content."""
        if count >= len(self):
            return np.arange(len(self))
        mixed = self.content[:, 0] * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed) * np.uint64(0xD6E8FEB86659FD93)
        mixed ^= mixed >> np.uint64(32)
        mixed *= np.uint64(0xD6E8FEB86659FD93)
        return np.sort(np.argsort(mixed, kind="stable")[:count])

    def key(self, name: str, options: Mapping[str, object]) -> str:
        """Of a column of these documents: a digest of their texts, of the method and of its options."""
        parts = json.dumps([self.digest, name, options], sort_keys=True, default=str)
        return hashlib.sha256(parts.encode()).hexdigest()[:32]

    def mapped(
        self,
        name: str,
        options: Mapping[str, object],
        function: Callable[[list[str]], Fields],
        account: Account,
    ) -> dict[str, np.ndarray]:
        """What a function finds of each document, by name of field, [n] or [n, k] each: worked out once, kept in parts on the way.

        name, options: all that the function's result depends on beside the texts.
        function: is given texts, and returns fields with a row for each.
        Raises: OutOfTime where the account's time is spent: what was worked out is kept.
        """
        key = self.key(name, options)
        found = self.columns.read(key, len(self))
        if found is not None:
            return found
        if not len(self):
            return {field: value[:0] for field, value in function(["\n"]).items()}
        with self.columns.alone(key):
            found = self.columns.read(key, len(self))  # another process may have made it meanwhile
            if found is None:
                self._map(key, function, account)
                self.columns.join(key, {"method": name, "options": json.loads(json.dumps(options, default=str))})
                found = self.columns.read(key, len(self))
        assert found is not None
        return found

    def _map(self, key: str, function: Callable[[list[str]], Fields], account: Account) -> None:
        place = first = self.columns.done(key)
        held: list[Fields] = []
        characters = 0
        try:
            for texts in self.batches(place):
                account.check()
                held.append(function(texts))
                place += len(texts)
                characters += sum(map(len, texts))
                if characters >= PART or place - first >= PART_DOCUMENTS:
                    first, held, characters = self._flush(key, first, held), [], 0
        except OutOfTime:
            self._flush(key, first, held)
            raise
        self._flush(key, first, held)

    def _flush(self, key: str, first: int, held: Sequence[Fields]) -> int:
        """Keep a part. Returns where the next one begins."""
        if not held:
            return first
        joined = {name: np.concatenate([fields[name] for fields in held]) for name in held[0]}
        self.columns.add(key, first, joined)
        return first + len(next(iter(joined.values())))


def open_documents(source: Source, cache: Path, account: Account | None = None) -> Documents:
    """All documents of a source. It is read once to be measured; what was measured is found again by its stamp.

    cache: the folder under which columns are kept.
    Raises: OutOfTime where the account's time is spent before it is read.
    """
    columns = ColumnFolder(cache / "columns")
    key = hashlib.sha256(json.dumps(["documents", source.stamp()]).encode()).hexdigest()[:32]
    recorded = columns.about(key)
    if not recorded:
        with columns.alone(key):
            if not columns.about(key):
                _measure(source, columns, key, account or Account())
        recorded = columns.about(key)
    total, notes = recorded["documents"], recorded["notes"]
    found = columns.read(key, total)
    assert found is not None
    return Documents(source, columns, np.arange(total), found["bytes"], found["content"], notes)


def _measure(source: Source, columns: ColumnFolder, key: str, account: Account) -> None:
    """Read every text once: its size and its digest."""
    sizes, digests = list[np.ndarray](), list[bytes]()
    for texts in batched(source.texts(), BATCH):
        account.check()
        encoded = [text.encode() for text in texts]
        sizes.append(np.array([len(text) for text in encoded], dtype=np.int64))
        digests.append(b"".join(xxhash.xxh3_128_digest(text) for text in encoded))
    size = np.concatenate(sizes) if sizes else np.empty(0, np.int64)
    content = np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, 2)
    about = {"method": "documents", "documents": len(size), "notes": source.notes}
    columns.write(key, {"bytes": size, "content": content}, about)
