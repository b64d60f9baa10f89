"""A prepared corpus: a folder of tokens, the tokenizer that made them, and the manifest that vouches for both."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pydantic

from shoestring import atomic
from shoestring.data.shards import ADVICE
from shoestring.data.store import Split, TokenStore
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import ShoestringError, UsageError
from shoestring.json_files import NotJson, parse_json

VERSION = 2
MANIFEST = "manifest.json"


class Part(NamedTuple):
    """One domain of several: its name, and its part of both splits."""

    name: str
    train: TokenStore
    heldout: TokenStore


@dataclass(frozen=True)
class Dataset:
    """What `prepare` hands out.

    train, heldout: the two splits.
    domains: where there are several, the parts that the splits are made of.
    fingerprint: a digest of every token, every document's bounds and the tokenizer, so equal fingerprints mean equal data,
    whatever it was called and wherever it lay.
    """

    train: TokenStore
    heldout: TokenStore
    tokenizer: TextTokenizer
    fingerprint: str
    domains: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """The folder's description of itself. corpus: what it was prepared from, for people. tokenizer: its fingerprint. sha256: of
    the rest of it."""

    version: int
    corpus: str
    fingerprint: str
    tokenizer: str
    vocabulary: int
    dtype: Literal["uint16", "uint32"]
    train: Split
    heldout: Split
    sha256: str


def fingerprint(tokenizer: str, train: Split, heldout: Split) -> str:
    """The digest of a dataset, from the digests of its parts."""
    files = [[(shard.items, shard.sha256) for shard in (*part.shards, part.starts)] for part in (train, heldout)]
    return hashlib.sha256(json.dumps([tokenizer, files]).encode()).hexdigest()


def write_manifest(folder: Path, corpus: str, tokenizer: TextTokenizer, train: Split, heldout: Split) -> None:
    """Describe the files that are in `folder`; the last thing written there."""
    whole = fingerprint(tokenizer.fingerprint, train, heldout)
    dtype = token_type(tokenizer.vocabulary).name
    named = {"corpus": corpus, "fingerprint": whole, "tokenizer": tokenizer.fingerprint, "dtype": dtype}
    parts = {"train": dataclasses.asdict(train), "heldout": dataclasses.asdict(heldout)}
    content = {"version": VERSION, **named, "vocabulary": tokenizer.vocabulary, **parts}
    content["sha256"] = _digest(content)
    atomic.write_text(folder / MANIFEST, json.dumps(content, indent=2) + "\n")


def _digest(content: dict[str, Any]) -> str:
    """Of a manifest, without its own entry."""
    plain = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def token_type(vocabulary: int) -> np.dtype:
    """The smaller of uint16 and uint32 that holds every id."""
    return np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)


def open_dataset(folder: Path) -> Dataset:
    """The dataset in a folder that `prepare` made, wherever the folder was moved to.

    The manifest, the tokenizer and every byte of the tokens are checked first, at the speed at which memory, or the disk, is
    read (`bench/integrity.py`). Raises: ShoestringError where the folder is damaged, foreign, or of another version.
    """
    manifest = _read_manifest(folder / MANIFEST)
    try:
        tokenizer = TextTokenizer.load(folder)
    except UsageError as error:  # of the user's own file it would be one; this file is the cache's
        raise ShoestringError(f"{error}: {ADVICE}") from None
    whole = fingerprint(tokenizer.fingerprint, manifest.train, manifest.heldout)
    made = tokenizer.fingerprint, whole, tokenizer.vocabulary
    if made != (manifest.tokenizer, manifest.fingerprint, manifest.vocabulary):
        raise ShoestringError(f"{folder}: tokenizer and manifest do not belong together: {ADVICE}")
    dtype = np.dtype(manifest.dtype)
    train, heldout = (
        TokenStore.open(folder, part, dtype, manifest.vocabulary) for part in (manifest.train, manifest.heldout)
    )
    return Dataset(train, heldout, tokenizer, manifest.fingerprint)


def _read_manifest(path: Path) -> Manifest:
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise ShoestringError(f"no prepared corpus at {path.parent}: {path.name}: {error.strerror}") from None
    except NotJson as error:
        raise ShoestringError(f"{path} is damaged: {error}: {ADVICE}") from None
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise ShoestringError(f"{path} is of version {version}, and this reads version {VERSION}: prepare it anew")
    if content.get("sha256") != _digest(content):
        raise ShoestringError(f"{path} is damaged: its checksum is not the one recorded: {ADVICE}")
    try:
        return pydantic.TypeAdapter(Manifest).validate_python(content)
    except pydantic.ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ShoestringError(f"{path} is damaged at '{where}': {ADVICE}") from None


def require(dataset: Dataset, context: int) -> None:
    """Check that both splits fill a window, of each domain where there are several. Raises: UsageError, saying how many tokens
    there are and are needed."""
    parts = dataset.domains or (Part("", dataset.train, dataset.heldout),)
    for name, store, domain in (
        (name, store, part.name)
        for part in parts
        for name, store in (("training", part.train), ("held-out", part.heldout))
    ):
        if store.marks is not None:  # chats, which are padded
            if not len(store):
                raise UsageError(f"there is no {name} chat: give more chats, that differ, or another data.heldout")
            continue
        if len(store) < context + 1:
            documents = len(store.document_starts)
            raise UsageError(
                f"the corpus{f' of source {domain}' if domain else ''} is too small: {len(store)} {name} tokens in "
                f"{documents} documents, and a context of "
                f"{context} needs {context + 1}; give it more text, a shorter context or another data.heldout"
            )
