"""Text made by a model from documents: in parts that survive a kill, each text with the seed that it was made from."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from shoestring import atomic
from shoestring.budget.charge import NOTHING, Charge
from shoestring.config import Choice, Pick
from shoestring.contract.author import Author, AuthoredText
from shoestring.data.curated_folder import CARD, DOCUMENTS, FORMAT
from shoestring.data.curation.account import Account
from shoestring.data.curation.documents import Documents
from shoestring.errors import ShoestringError
from shoestring.json_files import NotJson, parse_json

SYNTHESIS = Pick("data", "synthesis")

GROUP = 8
"""Documents whose text is made together: what a kill costs at most."""

log = logging.getLogger(__name__)


class Instruction(NamedTuple):
    """An instruction to the model. text: what it is told. seed: the passage that it is about. style: which of several."""

    text: str
    seed: str
    style: str


class Synthesis(Protocol):
    """Is made of its options.

    author: the place of the model. tokens: of an answer at most. temperature: of its draws. seed: of them.
    """

    author: str
    tokens: int
    temperature: float
    seed: int

    def asked(self, document: str) -> Sequence[Instruction]:
        """What the model is told for a document, in order; nothing for one that is passed over."""
        ...

    def fault(self, asked: Instruction, answer: AuthoredText) -> str:
        """Why an answer is dropped; '' where it is kept."""
        ...


class PreparedAuthor(NamedTuple):
    """Who writes. spent: what preparing it took, whenever that was."""

    author: Author
    spent: Charge = NOTHING


@runtime_checkable
class Prepares(Protocol):
    """What a method may have beside: who writes is prepared on the documents first, and is not the model that answers."""

    def digest(self, account: Account) -> str:
        """Of the model that it is made of."""
        ...

    def prepare(self, documents: Documents, account: Account, folder: Path) -> PreparedAuthor:
        """Who writes. What is worked out is kept in `folder`, and found again there.

        Raises: OutOfTime, where what was worked out is kept.
        """
        ...


@runtime_checkable
class Remembers(Protocol):
    """What a method may have beside: it holds texts against those that are kept."""

    def remember(self, text: str) -> None:
        """A text that is kept, in order, whether it was made now or before."""
        ...


@dataclass(frozen=True)
class Synthesised:
    """parts: files of JSON lines, in order. kept: texts that are kept. dropped: how many were dropped, by reason.
    bytes: UTF-8 text of those kept. spent: what the model took for all of it, whenever it was made."""

    parts: tuple[Path, ...]
    kept: int
    dropped: Mapping[str, int]
    bytes: int
    spent: Mapping[str, int]

    def rows(self) -> Iterator[dict[str, Any]]:
        """'text', 'seed_text', 'style', and 'number' of the document, of each text that is kept."""
        for part in self.parts:
            yield from _read(part)["rows"]


def synthesise(documents: Documents, choice: Choice, account: Account, cache: Path) -> Synthesised:
    """Make text from each document. What is there of it in the cache is not made again.

    Raises: OutOfTime, where what was made is kept; UsageError where the model cannot be asked.
    """
    method: Synthesis = choice.build()
    digest = method.digest(account) if isinstance(method, Prepares) else account.author(method.author).digest
    options = {key: value for key, value in choice.options.items() if key != "author"}
    folder = cache / "synthesis" / documents.key(choice.name, {**options, "author": digest})
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(method, Prepares):
        ready = method.prepare(documents, account, folder)
    else:
        ready = PreparedAuthor(account.author(method.author))
    numbers, texts = iter(documents.numbers.tolist()), iter(documents)
    parts, dropped, spent = list[Path](), Counter[str](), Counter[str](ready.spent.as_dict())
    kept = size = 0
    while group := list(islice(zip(numbers, texts, strict=False), GROUP)):
        path = folder / f"{len(parts):08d}.json"
        if not path.exists():
            account.check()
            before = account.spent
            made = _made(group, method, ready.author)
            made["spent"] = (account.spent + -before).as_dict()
            atomic.write_text(path, json.dumps(made, ensure_ascii=False))
        elif isinstance(method, Remembers):
            for row in _read(path)["rows"]:
                method.remember(row["text"])
        part = _read(path)
        kept, size = kept + len(part["rows"]), size + sum(len(row["text"].encode()) for row in part["rows"])
        dropped.update(part["dropped"])
        spent.update(part["spent"])
        parts.append(path)
    log.info(f"{choice.name}: {kept:,} texts made of {len(documents):,} documents, {size / 1e6:,.1f} MB")
    for why, count in dropped.most_common():
        log.info(f"    {count:>9,}  {why}")
    return Synthesised(tuple(parts), kept, dict(dropped), size, dict(spent))


def _made(group: Sequence[tuple[int, str]], method: Synthesis, author: Author) -> dict[str, Any]:
    asked = [(number, each) for number, text in group for each in method.asked(text)]
    seeds = [_seed(method.seed, number, each) for number, each in asked]
    texts = author.answers([each.text for _, each in asked], seeds, method.tokens, method.temperature)
    rows, dropped = list[dict[str, Any]](), Counter[str]()
    for (number, each), answer in zip(asked, texts.texts, strict=True):
        if why := method.fault(each, answer):
            dropped[why] += 1
        else:
            if isinstance(method, Remembers):
                method.remember(answer.text)
            rows.append({"text": answer.text, "seed_text": each.seed, "style": each.style, "number": number})
    return {"rows": rows, "dropped": dict(dropped)}


def _seed(seed: int, number: int, asked: Instruction) -> int:
    """Of the draws for an instruction: it hangs on what is asked, not on what else is."""
    return (
        int.from_bytes(hashlib.sha256(f"{seed} {number} {asked.style} {asked.text}".encode()).digest()[:8], "big") >> 1
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = parse_json(path.read_bytes())
    except (OSError, NotJson) as error:
        raise ShoestringError(f"{path} is damaged ({error}): delete it and it will be made anew") from None
    return found


def write_synthesised(made: Synthesised, folder: Path, card: Mapping[str, Any]) -> None:
    """Write a folder that is a corpus, whole or not at all: `documents/` with what was made, `data-card.json`.

    Raises: ShoestringError where it cannot be written.
    """
    try:
        with atomic.directory(folder) as half:
            (half / DOCUMENTS).mkdir()
            with open(half / DOCUMENTS / "00000.jsonl", "w", encoding="utf-8") as file:
                for row in made.rows():
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            content = {
                "format": FORMAT,
                "version": 1,
                **card,
                "synthesised": {
                    "texts": made.kept,
                    "bytes": made.bytes,
                    "dropped": dict(made.dropped),
                    "spent": dict(made.spent),
                },
            }
            atomic.write_text(half / CARD, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise ShoestringError(f"{folder} cannot be written: {error.strerror or error}") from None
