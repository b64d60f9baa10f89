"""What a teacher said of the tokens that it read, kept in a folder: the likeliest tokens of each place, with their likelihoods."""

import hashlib
import json
import logging
import os
import secrets
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from shoestring import atomic
from shoestring.contract.batch import Inputs
from shoestring.contract.model import LanguageModel
from shoestring.errors import ShoestringError, UsageError
from shoestring.json_files import read_json

log = logging.getLogger(__name__)

ABOUT = "teacher.json"
ENDING = ".rows"
MAGIC = b"TRow"
HEAD = struct.Struct("<4s16sIQ")
"""Of a record: what it is, what the row reads, its places, and the checksum of the rest."""


class Known(NamedTuple):
    """What is known of the distribution at each of N places.

    tokens: int64 [N, k], the likeliest. logs: float32 [N, k], their log-probabilities.
    rest: float32 [N], the logarithm of what all others have together; None where there are no others.
    """

    tokens: Tensor
    logs: Tensor
    rest: Tensor | None

    @staticmethod
    def joined(parts: "Sequence[Known]") -> "Known":
        """The places of several, one after the other."""
        rests = [part.rest for part in parts if part.rest is not None]
        rest = torch.cat(rests) if rests else None
        return Known(torch.cat([part.tokens for part in parts]), torch.cat([part.logs for part in parts]), rest)

    def to(self, device: torch.device | str) -> "Known":
        """The same on another device."""
        return Known(*(None if each is None else each.to(device) for each in self))  # type: ignore[arg-type]


def likeliest(logs: Tensor, top: int) -> Known:
    """The `top` likeliest of log-probabilities [N, V], as the cache holds them: rounded to 16 bits."""
    found = logs.float().topk(min(top, logs.shape[-1]), dim=-1)
    rest = None
    if found.indices.shape[-1] < logs.shape[-1]:
        rest = logs.float().scatter(-1, found.indices, -torch.inf).logsumexp(-1).half().float()
    return Known(found.indices, found.values.half().float(), rest)


class TeacherCache:
    """A folder of what one teacher said, to be asked by what a row reads.

    Rows are found by a digest of all that they read, so a second epoch, another run and another student find them too. A record
    is written whole behind others; the half of one whose writer was killed is not seen. Each process writes a file of its own.

    folder: made where it is missing. teacher: a digest of it. vocabulary: V. top: k, tokens kept of a place.
    temperature: of the distributions that are kept.
    Raises: UsageError where the folder holds what another teacher said, or in another form; ShoestringError where it is damaged.
    """

    def __init__(self, folder: Path, *, teacher: str, vocabulary: int, top: int, temperature: float) -> None:
        self.folder, self.vocabulary, self.top = folder, vocabulary, min(top, vocabulary)
        self._index = np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")
        about = {"teacher": teacher, "vocabulary": vocabulary, "top": self.top, "temperature": temperature}
        self._settle(about)
        self._places: dict[bytes, tuple[Path, int, int, int]] = {}
        for path in sorted(folder.glob(f"*{ENDING}")):
            self._survey(path)
        self._own = folder / f"{os.getpid()}-{secrets.token_hex(4)}{ENDING}"
        log.info(
            "teacher cache %s: %d bytes a token, %d rows are known", folder, self.bytes_per_token, len(self._places)
        )

    @property
    def bytes_per_token(self) -> int:
        """What a place takes on disk, but for a few bytes of each row."""
        return self.top * (self._index.itemsize + 2) + 2 * (self.top < self.vocabulary)

    def __len__(self) -> int:
        """Rows that are known."""
        return len(self._places)

    def get(self, key: bytes) -> Known | None:
        """What was said of the row of this key; None where it is not known. Raises: ShoestringError where it is damaged."""
        if key not in self._places:
            return None
        path, start, length, checksum = self._places[key]
        size = length * self.bytes_per_token
        try:
            with open(path, "rb") as file:
                file.seek(start)
                payload = file.read(size)
        except OSError as error:
            raise ShoestringError(f"{path} cannot be read: {error.strerror}") from None
        if len(payload) != size or _checksum(key, payload) != checksum:
            raise ShoestringError(f"{path} is damaged at byte {start}: remove the file, and the teacher is asked again")
        split = length * self.top * self._index.itemsize
        tokens = np.frombuffer(payload[:split], self._index).astype(np.int64).reshape(length, self.top)
        halves = torch.from_numpy(np.frombuffer(payload[split:], "<f2").astype(np.float32))
        logs = halves[: length * self.top].view(length, self.top)
        rest = halves[length * self.top :] if self.top < self.vocabulary else None
        return Known(torch.from_numpy(tokens), logs, rest)

    def put(self, rows: Sequence[tuple[bytes, Known]]) -> None:
        """Keep what was said of rows, each by its key. Raises: ShoestringError where it cannot."""
        records = list[bytes]()
        start = self._own.stat().st_size if self._own.exists() else 0
        written = 0
        for key, known in rows:
            halves = [known.logs.flatten()] + ([] if known.rest is None else [known.rest])
            payload = known.tokens.cpu().numpy().astype(self._index).tobytes()
            payload += torch.cat(halves).cpu().numpy().astype("<f2").tobytes()
            length, checksum = len(known.tokens), _checksum(key, payload)
            records.append(HEAD.pack(MAGIC, key, length, checksum) + payload)
            self._places[key] = (self._own, start + written + HEAD.size, length, checksum)
            written += len(records[-1])
        try:
            with open(self._own, "ab") as file:
                file.write(b"".join(records))
        except OSError as error:
            raise ShoestringError(f"what the teacher said cannot be kept in {self._own}: {error.strerror}") from None

    def _settle(self, about: dict[str, object]) -> None:
        path = self.folder / ABOUT
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.folder} cannot be a folder for what the teacher says: {error.strerror}") from None
        if not path.exists():
            if any(self.folder.iterdir()):
                raise UsageError(f"{self.folder} holds something else than a teacher's words: name another folder")
            atomic.write_text(path, json.dumps(about, indent=1) + "\n")
            return
        found = read_json(path, dict, "what a teacher's words are of")
        for name, value in about.items():
            if found.get(name) != value:
                was = "of another teacher" if name == "teacher" else f"of {name} {found.get(name)}, not {value}"
                raise UsageError(f"{self.folder} holds words {was}: name another folder, or remove it")

    def _survey(self, path: Path) -> None:
        """Learn where the records of a file are."""
        size = path.stat().st_size
        with open(path, "rb") as file:
            at = 0
            while at + HEAD.size <= size:
                file.seek(at)
                magic, key, length, checksum = HEAD.unpack(file.read(HEAD.size))
                if magic != MAGIC:
                    raise ShoestringError(
                        f"{path} is damaged at byte {at}: remove the file, and the teacher is asked again"
                    )
                end = at + HEAD.size + length * self.bytes_per_token
                if end > size:
                    break
                self._places[key] = (path, at + HEAD.size, length, checksum)
                at = end
        if at < size:
            log.info("%s ends in half a row, whose writer was stopped: it is not used", path)


def row_keys(inputs: Inputs) -> list[bytes]:
    """16 bytes for each row, of all that it reads: rows of one key have the same logits."""
    there = [
        (name, tensor.cpu().numpy()) for name, tensor in zip(Inputs._fields, inputs, strict=True) if tensor is not None
    ]
    found = []
    for row in range(inputs.rows):
        digest = hashlib.blake2b(digest_size=16)
        for name, array in there:
            digest.update(f"{name}{array[row].shape}{array.dtype}".encode())
            digest.update(np.ascontiguousarray(array[row]).tobytes())
        found.append(digest.digest())
    return found


def fingerprint(model: LanguageModel) -> str:
    """A digest of a model's weights. Raises: UsageError for what has none to look at, such as an ensemble."""
    if not isinstance(model, nn.Module):
        raise UsageError("what this teacher says cannot be kept: it is no single model, so leave the cache out")
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _checksum(key: bytes, payload: bytes) -> int:
    return xxhash.xxh3_64(key + payload).intdigest()
