"""The first reading of a corpus: its content hash, where the line falls between training and held-out documents, and a
sample to train a tokenizer on. One pass, and memory for the sample only."""

import hashlib
import heapq
from collections.abc import Iterable
from dataclasses import dataclass

SPACE = 1 << 64
"""Documents are hashed to positions in [0, SPACE)."""


def digest(document: str) -> bytes:
    """16 bytes that stand for a document: 8 decide its side of the split, the other 8 if it is in the sample."""
    return hashlib.blake2b(document.encode(), digest_size=16).digest()


def position(key: bytes) -> int:
    """Where a document falls on the line that is cut into held-out (below) and training (above)."""
    return int.from_bytes(key[:8], "little")


@dataclass(frozen=True)
class Survey:
    """What one reading of a corpus found.

    content: hex digest of all documents in their order. documents: how many. bytes: of UTF-8 text. cut: a document is
    held out where its `position` is at most this. sample: training documents, in an order fixed by their content.
    """

    content: str
    documents: int
    bytes: int
    cut: int
    sample: tuple[str, ...]


class Content:
    """The running digest of a sequence of documents."""

    def __init__(self) -> None:
        self._running = hashlib.blake2b(digest_size=16)

    def add(self, key: bytes) -> None:
        self._running.update(key)

    def hexdigest(self) -> str:
        return self._running.hexdigest()


def survey(documents: Iterable[str], heldout: float, sample_size: int) -> Survey:
    """Read every document once.

    heldout: the share of documents to hold out, by the hash of their content: another document more moves none of the
    others, and copies of one document fall on one side. Where the share would leave a side empty, the document nearest
    the line crosses it, so both sides have one as soon as two documents differ; a lone document is for training.
    sample_size: characters of text to sample; documents are taken in the order of their hash until there are so many.
    """
    content, sample = Content(), _Sample(sample_size)
    count = size = 0
    lowest, highest = SPACE, -1
    for document in documents:
        key = digest(document)
        content.add(key)
        sample.offer(key, document)
        count += 1
        size += len(document.encode())
        lowest, highest = min(lowest, position(key)), max(highest, position(key))
    cut = min(max(int(heldout * SPACE) - 1, lowest), highest - 1)
    return Survey(content.hexdigest(), count, size, cut, sample.above(cut))


class _Sample:
    """The documents of lowest hash, as many as make up `size` characters; an even draw in whatever order they come."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.longest = size // 8  # so that no one document fills the sample
        self.held = 0
        self.heap: list[tuple[int, bytes, str]] = []
        self.keys: set[bytes] = set()

    def offer(self, key: bytes, document: str) -> None:
        rank = -int.from_bytes(key[8:], "little")  # negative: the heap gives up the highest hash first
        if not self.size or key in self.keys or (self.held >= self.size and rank <= self.heap[0][0]):
            return
        document = document[: self.longest]
        heapq.heappush(self.heap, (rank, key, document))
        self.keys.add(key)
        self.held += len(document)
        while self.held - len(self.heap[0][2]) >= self.size:
            _, dropped, text = heapq.heappop(self.heap)
            self.keys.remove(dropped)
            self.held -= len(text)

    def above(self, cut: int) -> tuple[str, ...]:
        return tuple(text for _, key, text in sorted(self.heap, reverse=True) if position(key) > cut)
