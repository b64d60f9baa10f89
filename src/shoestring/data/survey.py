"""The first reading of a corpus: its content hash, where the line falls between training and held-out documents, and a
sample to train a tokenizer on. One pass, and memory for the sample and the weights of the heaviest documents only."""

import hashlib
import heapq
from collections.abc import Iterable
from dataclasses import dataclass

SPACE = 1 << 64
"""Documents are hashed to positions in [0, SPACE)."""

TOLERANCE = 4.0
"""How many times more or less than asked may be held out. Python's own library has 0.8 % of its bytes where 2 % are asked."""

COUNTED = 1 << 16
"""Different documents that are weighed each."""

BUCKETS = 1 << 16
"""Stretches of positions that are weighed where more documents differ."""


Key = bytes
"""The `digest` of a document."""


def digest(document: str) -> Key:
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
    kept: keys of documents that are for training although their position is not above the cut; empty but where the split
    by position alone would hold out far from what was asked. distinct: how many documents differ, None where there are
    more than `COUNTED`. heldout_bytes: of UTF-8 text on that side. by_weight: whether the split heeds how much text each
    document has.
    """

    content: str
    documents: int
    bytes: int
    cut: int
    sample: tuple[str, ...]
    kept: frozenset[Key] = frozenset()
    distinct: int | None = None
    heldout_bytes: int = 0
    by_weight: bool = False

    def holds_out(self, key: Key) -> bool:
        """Whether the document of this `digest` is held out."""
        return position(key) <= self.cut and key not in self.kept


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

    heldout: the share to hold out, by the hash of their content: another document more moves none of the others, and
    copies of one document fall on one side. Where few documents differ, or some are repeated often, the share of the
    documents (copies counted) or of the bytes may come out more than `TOLERANCE` times too large or too small: the
    heaviest documents are then for training, and the others are held out in the order of their hash until the bytes
    come to the share. Both sides have a document as soon as two differ; a lone document is for training.
    sample_size: characters of text to sample; documents are taken in the order of their hash until there are so many.
    """
    content, sample, weights = Content(), _Sample(sample_size), _Weights()
    limit = int(heldout * SPACE) - 1
    count = size = held_count = held_size = 0
    lowest, highest = SPACE, -1
    for document in documents:
        key = digest(document)
        content.add(key)
        sample.offer(key, document)
        place, length = position(key), len(document.encode())
        count += 1
        size += length
        if place <= limit:
            held_count += 1
            held_size += length
        lowest, highest = min(lowest, place), max(highest, place)
        weights.add(key, length)
    cut, kept = limit, frozenset[bytes]()
    both_sides = lowest <= limit < highest
    by_weight = bool(count) and not (
        both_sides and _near(held_count / count, heldout) and _near(held_size / size, heldout)
    )
    if by_weight:
        cut, kept, held_size = weights.split(heldout * size)
    distinct = len(weights.counted) if weights.exact else None
    return Survey(content.hexdigest(), count, size, cut, sample.above(cut, kept), kept, distinct, held_size, by_weight)


def _near(found: float, asked: float) -> bool:
    return asked / TOLERANCE <= found <= asked * TOLERANCE


class _Weights:
    """Bytes of each document, its copies counted together.

    They are exact for up to `COUNTED` different documents. Beyond, those of small weight are forgotten (Misra and Gries,
    "Finding repeated elements", 1982): what is counted for a document is then too little by at most `lost`, which is at
    most two parts in COUNTED of the whole; and the bytes at each of `BUCKETS` stretches of positions stand for the rest.
    """

    def __init__(self) -> None:
        self.counted: dict[bytes, int] = {}
        self.lost = 0
        self.buckets = [0] * BUCKETS

    @property
    def exact(self) -> bool:
        return not self.lost

    def add(self, key: bytes, length: int) -> None:
        self.buckets[position(key) * BUCKETS // SPACE] += length
        self.counted[key] = self.counted.get(key, 0) + length
        if len(self.counted) > COUNTED:
            middle = sorted(self.counted.values())[COUNTED // 2]
            self.lost += middle
            self.counted = {key: left - middle for key, left in self.counted.items() if left > middle}

    def split(self, wanted: float) -> tuple[int, frozenset[bytes], int]:
        """(cut, kept, bytes held out) of a split that holds out about `wanted` bytes; see `Survey`."""
        if not self.exact:
            return self._split_by_buckets(wanted)
        ordered = sorted(self.counted, key=position)
        if len(ordered) < 2:
            return position(ordered[0]) - 1, frozenset(), 0
        held, taken = 0, list[bytes]()
        for key in ordered:
            if held + self.counted[key] / 2 <= wanted:  # with it the share is met better than without
                taken.append(key)
                held += self.counted[key]
        if not taken or len(taken) == len(ordered):
            taken = [min(ordered, key=lambda key: (self.counted[key], position(key)))]
            held = self.counted[taken[0]]
        cut = position(taken[-1])
        return cut, frozenset(key for key in ordered if position(key) <= cut) - set(taken), held

    def _split_by_buckets(self, wanted: float) -> tuple[int, frozenset[bytes], int]:
        heavy = {key: weight for key, weight in self.counted.items() if weight > wanted / 8}
        light = list(self.buckets)
        for key, weight in heavy.items():
            light[position(key) * BUCKETS // SPACE] -= weight
        held = bucket = 0
        while bucket < BUCKETS - 1 and (not held or held + light[bucket] / 2 <= wanted):
            held += light[bucket]
            bucket += 1
        cut = bucket * SPACE // BUCKETS - 1
        return cut, frozenset(key for key in heavy if position(key) <= cut), held


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

    def above(self, cut: int, kept: frozenset[bytes]) -> tuple[str, ...]:
        drawn = sorted(self.heap, reverse=True)
        return tuple(text for _, key, text in drawn if position(key) > cut or key in kept)
