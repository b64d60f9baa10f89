"""Tokens on disk: one split of a corpus, its documents laid end to end in memory-mapped shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from shoestring.data.shards import ADVICE, SHARD_ITEMS, Shard, ShardWriter, open_shard
from shoestring.errors import ShoestringError

STARTS = np.dtype(np.int64)


@dataclass(frozen=True)
class Split:
    """One split as its manifest tells it: numbers of tokens, documents, and bytes of UTF-8 text; and its files."""

    tokens: int
    documents: int
    bytes: int
    shards: tuple[Shard, ...]
    starts: Shard


class TokenStore:
    """Documents as one long row of tokens, each document followed by the end token.

    shards: the row, cut anywhere; uint16 or uint32. marks: a store of the same shape, 1 where a token is to be learnt; None: all
    are. document_starts: int64, ascending, where in the row each document
    starts. text_bytes: bytes of UTF-8 the documents had. Nothing is read before it is asked for.
    """

    marks: "TokenStore | None" = None

    def __init__(self, shards: Sequence[np.ndarray], document_starts: np.ndarray, text_bytes: int) -> None:
        self.shards = tuple(shards)
        self.document_starts = document_starts
        self.text_bytes = text_bytes
        self._bounds = np.cumsum([0, *(len(shard) for shard in self.shards)])

    @classmethod
    def of(cls, documents: Sequence[Sequence[int]], end: int, text_bytes: int = 0) -> "TokenStore":
        """A store in memory, from the ids of some documents."""
        row = np.array([token for document in documents for token in (*document, end)], dtype=np.uint32)
        starts = np.cumsum([0, *(len(document) + 1 for document in documents)], dtype=STARTS)[:-1]
        return cls([row], starts, text_bytes)

    @classmethod
    def open(cls, folder: Path, part: Split, dtype: np.dtype, vocabulary: int) -> "TokenStore":
        """The store a manifest describes, read once from end to end to be checked: its checksums, that no id is `vocabulary` or
        more, and that the starts of documents ascend from 0.

        Raises: ShoestringError where a file is missing, cut short, damaged or another's.
        """
        highest = [0]

        def look(piece: np.ndarray) -> None:
            highest[0] = max(highest[0], int(piece.max()))

        shards = [open_shard(folder, shard, dtype, look) for shard in part.shards]
        starts = open_shard(folder, part.starts, STARTS)
        store = cls(shards, starts, part.bytes)
        if highest[0] >= vocabulary:
            raise ShoestringError(
                f"{folder} holds the token {highest[0]}, and its tokenizer has {vocabulary} of them: {ADVICE}"
            )
        if (len(store), len(starts)) != (part.tokens, part.documents) or not _ascend(starts, len(store)):
            raise ShoestringError(f"{folder}: its documents are not those that its manifest describes: {ADVICE}")
        return store

    @staticmethod
    def joined(stores: "Sequence[TokenStore]") -> "TokenStore":
        """The documents of several stores, one store after the other: views of their shards, nothing copied."""
        bases = np.cumsum([0, *(len(store) for store in stores)], dtype=STARTS)
        starts = [store.document_starts + base for store, base in zip(stores, bases[:-1], strict=True)]
        shards = [shard for store in stores for shard in store.shards]
        whole = TokenStore(shards, np.concatenate(starts), sum(store.text_bytes for store in stores))
        marks = [store.marks for store in stores if store.marks is not None]
        if marks and len(marks) < len(stores):
            raise ValueError("stores that are joined are all marked, or none is")
        whole.marks = TokenStore.joined(marks) if marks else None
        return whole

    def __len__(self) -> int:
        """Tokens, end tokens included."""
        return int(self._bounds[-1])

    @cached_property
    def tokens(self) -> np.ndarray:
        """All tokens as one array: a view of a single shard, but a copy in memory of several (`rows` needs none)."""
        return self.shards[0] if len(self.shards) == 1 else np.concatenate(self.shards)

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        """Write tokens start .. stop-1 to `out` [stop - start], of any integer type that holds them."""
        shard = int(np.searchsorted(self._bounds, start, side="right")) - 1
        done = 0
        while done < stop - start:
            base = int(self._bounds[shard])
            piece = self.shards[shard][start + done - base : stop - base]
            out[done : done + len(piece)] = piece
            done += len(piece)
            shard += 1

    def rows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """int64 [len(starts), length]: the tokens from each start on. Raises: IndexError beyond the ends."""
        if len(starts) and not 0 <= starts.min() <= starts.max() <= len(self) - length:
            raise IndexError(f"rows of {length} from {starts.min()} to {starts.max()}: there are {len(self)} tokens")
        gathered = np.empty((len(starts), length), dtype=np.int64)
        for row, start in enumerate(starts.tolist()):
            self.read(start, start + length, gathered[row])
        return gathered


class StoreWriter:
    """Writes a store a document at a time, in memory that does not grow with it."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype, end: int, shard_items: int = SHARD_ITEMS) -> None:
        self._tokens = ShardWriter(folder, name, dtype, shard_items)
        self._starts = ShardWriter(folder, f"{name}.starts", STARTS, limit=1 << 62)  # one file, so that it is one array
        self._dtype, self._end, self._bytes = dtype, end, 0

    def add(self, ids: Sequence[int], text_bytes: int) -> None:
        """A document: its ids without the end token, and how many bytes of text they stand for."""
        self._starts.append(np.array([self._tokens.items], dtype=STARTS))
        self._tokens.append(np.array([*ids, self._end], dtype=self._dtype))
        self._bytes += text_bytes

    def close(self) -> Split:
        documents, (starts,) = self._starts.items, self._starts.close()
        return Split(self._tokens.items, documents, self._bytes, self._tokens.close(), starts)


def _ascend(starts: np.ndarray, tokens: int) -> bool:
    """Whether these are where documents of one token or more start that are `tokens` long together."""
    if not len(starts):
        return not tokens
    return bool(starts[0] == 0 and starts[-1] < tokens and (starts[1:] > starts[:-1]).all())
