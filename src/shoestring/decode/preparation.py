"""What a decoding method needs is made beforehand, of a model and of texts: a datastore, a head, routers, a judge."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.errors import UsageError


@dataclass(frozen=True)
class Given:
    """A text to prepare of.

    tokens: of all of it. prompt: how many of them are a question, 0 of plain text.
    check: whether the tokens of an answer are right; None where nobody can say.
    """

    tokens: tuple[int, ...]
    prompt: int = 0
    check: Callable[[Sequence[int]], bool] | None = None


@dataclass(frozen=True)
class Prepared:
    """What was made.

    save: writes it. charge: what it took. found: a line each for what is worth knowing of it.
    """

    save: Callable[[Path], None]
    charge: Charge
    found: tuple[str, ...] = ()


def windows(texts: Sequence[Given], length: int, rows: int) -> list[Tensor]:
    """Batches [rows, length] of the texts' tokens, one text after the other; what is left over at the end is dropped, rows before
    places. Raises: UsageError where there is no window."""
    tokens = [token for text in texts for token in text.tokens]
    count = len(tokens) // length
    if not count:
        raise UsageError(f"{len(tokens):,} tokens make no window of {length}: give more text")
    whole = torch.tensor(tokens[: count * length]).view(count, length)
    return list(whole.split(rows))


def pieces(texts: Sequence[Given], length: int) -> list[Given]:
    """The same texts, the plain ones cut into pieces of so many tokens; of one token there is none."""
    found = list[Given]()
    for text in texts:
        if text.prompt:
            found.append(text)
            continue
        cut = (text.tokens[start : start + length] for start in range(0, len(text.tokens), length))
        found += [Given(tokens) for tokens in cut if len(tokens) > 1]
    return found


def parted(text: Given) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(the question, the answer) of a text; of plain text, its halves."""
    at = text.prompt or len(text.tokens) // 2
    return text.tokens[:at], text.tokens[at:]
