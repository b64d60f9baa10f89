"""Near-duplicates by MinHash and banded locality-sensitive hashing."""

from collections.abc import Iterator
from typing import Annotated

import numpy as np
from annotated_types import Interval

from shoestring.data.curation.account import Account
from shoestring.data.curation.column import Column
from shoestring.data.curation.documents import Documents
from shoestring.data.curation.shingles import Unit, flat
from shoestring.errors import UsageError
from shoestring.method import method

REASON = "near-duplicate of an earlier document"

LEADERS = 32
"""Different documents of one bucket that the others are compared with, at most. Unlike ones seldom share a bucket."""

PAIRS = 1 << 14
"""Pairs whose signatures are compared together."""


@method(
    "data",
    kind="curation",
    name="minhash",
    paper="Deduplicating Training Data Makes Language Models Better, arXiv:2107.06499",
    claim="models trained on deduplicated text emit memorised text ten times less often and need fewer steps to the same or "
    "better accuracy",
    cost="one reading of the text, 4 `permutations` bytes a document on disk and 8 for each band, "
    "and a sort of 8 bytes a document for each band",
)
class MinHash:
    """Drops documents that share most of their short runs of words with an earlier one.

    The Jaccard similarity of two documents is J = |A and B| / |A or B|, where A and B are their sets of runs of `ngram` words. A
    signature has, for each of `permutations` hash functions h, min over A of h; two signatures agree in a place with
    probability J. Places are cut into b bands of r: documents that agree in a whole band, which happens with probability
    1 - (1 - J^r)^b, are candidates, and are near-duplicates where their signatures agree in a share of `threshold` or more.
    Near-duplicates of near-duplicates are one cluster, whose first document is kept. r is the largest for which a pair at
    the threshold is a candidate with probability `recall`.
    The paper compares candidates by edit similarity as well, which is not done here. The signatures are those of `rensa`.

    Columns: `of`, the number in the corpus of the first document of the cluster, -1 for that one itself and for those without
    near-duplicates; `copies`, how many documents the cluster has.

    threshold: the least share of runs in common.
    permutations: the length of a signature; the estimate of J is off by about sqrt(J (1 - J) / permutations).
    ngram: the length of a run.
    unit: 'word', or 'character' for scripts that set no spaces between words.
    recall: the least probability that a pair at the threshold is looked at; the higher, the more pairs are compared.
    seed: of the hash functions.
    """

    def __init__(
        self,
        *,
        threshold: Annotated[float, Interval(gt=0, le=1)] = 0.8,
        permutations: Annotated[int, Interval(ge=16, le=1024)] = 128,
        ngram: Annotated[int, Interval(ge=1, le=64)] = 5,
        unit: Unit = "word",
        recall: Annotated[float, Interval(ge=0.5, lt=1)] = 0.95,
        seed: Annotated[int, Interval(ge=0, lt=2**31)] = 0,
    ) -> None:
        self.threshold, self.permutations, self.ngram, self.unit = threshold, permutations, ngram, unit
        self.recall, self.seed = recall, seed
        self.bands()  # refuses what cannot be had

    def __call__(self, documents: Documents, account: Account) -> Column:
        bands, rows = self.bands()
        options = {"permutations": self.permutations, "ngram": self.ngram, "unit": self.unit, "seed": self.seed}
        found = documents.mapped("minhash", {**options, "bands": [bands, rows]}, self.signatures, account)
        parents = np.arange(len(documents))
        for band in range(bands):
            account.check()
            for one, other in self._alike(found["signature"], found[_field(band)]):
                _join(parents, one, other)
        first = np.array([_root(parents, place) for place in range(len(parents))], dtype=np.int64)
        copy = first != np.arange(len(first))
        sizes = np.bincount(first, minlength=len(first))[first] if len(first) else first
        values = {"of": np.where(copy, documents.numbers[first], -1), "copies": sizes}
        return Column.dropping(copy, REASON, values, [f"{bands} bands of {rows} of {self.permutations} hashes"])

    def signatures(self, texts: list[str]) -> dict[str, np.ndarray]:
        """signature: uint32 [n, permutations]; band00, band01 ...: uint64 [n], a digest of each band of it."""
        import rensa

        hashes, ends = flat(texts, self.ngram, self.unit)
        made = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, ends, self.permutations, self.seed)
        signature = np.array(made.to_rows(), dtype=np.uint32).reshape(len(texts), self.permutations)
        bands, rows = self.bands()
        digests = {_field(band): _hashed(signature[:, band * rows : (band + 1) * rows]) for band in range(bands)}
        return {"signature": signature, **digests}

    def bands(self) -> tuple[int, int]:
        """(b, r). Raises: UsageError where even bands of one hash find too few."""
        for rows in range(self.permutations, 0, -1):
            bands = self.permutations // rows
            if 1 - (1 - self.threshold**rows) ** bands >= self.recall:
                return bands, rows
        raise UsageError(
            f"minhash: {self.permutations} permutations cannot find pairs of similarity {self.threshold} with probability "
            f"{self.recall}: give more permutations, a higher threshold or a lower recall"
        )

    def _alike(self, signatures: np.ndarray, keys: np.ndarray) -> Iterator[tuple[int, int]]:
        """Pairs of places whose signatures agree in a band, and in a share of `threshold` of all. keys: [n], of that band."""
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        if not len(keys):
            return
        bounds = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
        sizes = np.diff(bounds)
        for bucket in np.flatnonzero(sizes > 1).tolist():
            members = order[bounds[bucket] : bounds[bucket + 1]]  # ascending, as the sort is stable
            for _ in range(LEADERS):
                if len(members) < 2:
                    break
                leader, rest = int(members[0]), members[1:]
                near = self._near(signatures, leader, rest)
                yield from ((leader, other) for other in rest[near].tolist())
                members = rest[~near]

    def _near(self, signatures: np.ndarray, leader: int, others: np.ndarray) -> np.ndarray:
        """bool [n]: whether the signatures of others agree with the leader's in a share of `threshold` or more."""
        own = np.asarray(signatures[leader])
        parts = [
            (signatures[others[start : start + PAIRS]] == own).mean(axis=1) for start in range(0, len(others), PAIRS)
        ]
        return np.asarray(np.concatenate(parts) >= self.threshold - 1e-9)


def _field(band: int) -> str:
    return f"band{band:02d}"


def _hashed(band: np.ndarray) -> np.ndarray:
    """uint64 [n]: a digest of each row of uint32 [n, r]."""
    value = np.zeros(len(band), dtype=np.uint64)
    for column in band.T:
        value = (value ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        value ^= value >> np.uint64(29)
    return value


def _root(parents: np.ndarray, place: int) -> int:
    root = place
    while parents[root] != root:
        root = int(parents[root])
    while parents[place] != root:  # the next look is shorter
        parents[place], place = root, int(parents[place])
    return root


def _join(parents: np.ndarray, one: int, other: int) -> None:
    """One cluster of two: its root is the first document."""
    first, second = sorted((_root(parents, one), _root(parents, other)))
    parents[second] = first
