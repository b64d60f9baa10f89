"""A part of a prepared corpus: some of its documents, listed in an index file, read in place."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save

from shoestring import atomic
from shoestring.data.dataset import Dataset
from shoestring.data.store import STARTS, TokenStore
from shoestring.errors import ShoestringError, UsageError

FORMAT = "shoestring-documents"
VERSION = 1


def document_bounds(store: TokenStore) -> np.ndarray:
    """int64 [documents + 1]: where each document starts, and where the last one ends (end tokens included)."""
    return np.append(store.document_starts, len(store)).astype(STARTS)


def select(store: TokenStore, documents: np.ndarray) -> TokenStore:
    """The store of some documents, by number, in the store's order: views of its shards, nothing copied.

    Its text_bytes is 0, as those of single documents are not kept. Raises: ValueError unless the numbers ascend and exist.
    """
    documents = np.asarray(documents, dtype=np.int64)
    bounds = document_bounds(store)
    if len(documents) and not (
        documents[0] >= 0 and documents[-1] < len(bounds) - 1 and (np.diff(documents) > 0).all()
    ):
        raise ValueError(
            f"documents are numbered from 0 to {len(bounds) - 2}, and listed in ascending order, each once"
        )
    starts, stops = bounds[documents], bounds[documents + 1]
    lengths = stops - starts
    own_starts = np.cumsum(np.concatenate([[0], lengths]), dtype=STARTS)[:-1]
    fresh = np.ones(
        len(documents), dtype=bool
    )  # a document that follows the one before it in the store joins its piece
    fresh[1:] = starts[1:] != stops[:-1]
    firsts = np.flatnonzero(fresh)
    lasts = np.append(firsts[1:], len(documents))[: len(firsts)] - 1
    pieces = [piece for low, high in zip(starts[firsts], stops[lasts], strict=True) for piece in _cut(store, low, high)]
    return TokenStore(pieces, own_starts, 0)


def _cut(store: TokenStore, low: int, high: int) -> list[np.ndarray]:
    """Tokens low .. high-1 as views, one of each shard they lie in."""
    pieces, base = [], 0
    for shard in store.shards:
        piece = np.asarray(shard)[max(low - base, 0) : max(high - base, 0)]
        if len(piece):
            pieces.append(piece)
        base += len(shard)
    return pieces


def write_index(path: Path, dataset: Dataset, splits: Mapping[str, np.ndarray]) -> None:
    """List documents of a dataset in a file, for `DataConfig.documents`. splits: ascending numbers of the documents of
    'train' and of 'heldout'; a split that is not named is taken whole."""
    known = {"train": dataset.train, "heldout": dataset.heldout}
    arrays = {}
    for name, store in known.items():
        given = splits.get(name, np.arange(len(store.document_starts)))
        arrays[name] = np.ascontiguousarray(given, dtype=np.int64)
        select(store, arrays[name])
    described = {"format": FORMAT, "version": str(VERSION), "dataset": dataset.fingerprint}
    atomic.write_bytes(path, save(arrays, metadata=described))


def read_index(path: Path, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The documents of both splits that an index of this dataset lists.

    Raises: UsageError where there is no such file, or it is of another corpus or tokenizer; ShoestringError where it is
    damaged.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            described = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise UsageError(f"no index of documents at {path} (data.documents)") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise ShoestringError(f"{path} is no index of documents, or damaged: {error}") from None
    if described.get("format") != FORMAT or set(arrays) != {"train", "heldout"}:
        raise UsageError(f"{path} is no index of documents (data.documents)")
    if described.get("version") != str(VERSION):
        raise UsageError(f"{path} is of version {described.get('version')}, and this reads version {VERSION}")
    if described.get("dataset") != dataset.fingerprint:
        raise UsageError(f"{path} lists documents of another corpus, or of this one under another tokenizer or split")
    return arrays["train"], arrays["heldout"]


def subset(dataset: Dataset, train: np.ndarray, heldout: np.ndarray) -> Dataset:
    """The dataset of some of the documents of each split. Its fingerprint is of the whole's and of the lists.

    Raises: UsageError where a list is empty.
    """
    if not len(train) or not len(heldout):
        raise UsageError("an index of documents lists at least one to train on and one held out")
    lists = [hashlib.sha256(part.astype("<i8").tobytes()).hexdigest() for part in (train, heldout)]
    digest = hashlib.sha256(json.dumps([dataset.fingerprint, *lists]).encode()).hexdigest()
    return replace(
        dataset,
        train=select(dataset.train, train),
        heldout=select(dataset.heldout, heldout),
        fingerprint=digest,
        domains=(),
    )
