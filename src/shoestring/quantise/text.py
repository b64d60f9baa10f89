"""Text for a quantisation: some documents to calibrate on, and others to measure on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from shoestring.base.likelihood import first_tokens
from shoestring.base.text import Text
from shoestring.contract.batch import Batch, Inputs
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import UsageError

WINDOW = 512
"""Tokens of a window of calibration text, at most."""

ROWS = 2
"""Windows of a batch."""


@dataclass(frozen=True)
class QuantiseText:
    """calibration: windows of tokens. measured: documents of which none is among those."""

    calibration: tuple[Batch, ...]
    measured: Text


def split_text(text: Text, tokenizer: TextTokenizer, context: int, calibration: int, measured: int) -> QuantiseText:
    """The first documents to calibrate on, and of the others about `measured` tokens. A single document is cut in the middle.

    context: of the model. calibration: tokens, at most: no more than half of the documents are taken for it.
    Raises: UsageError where there is too little text.
    """
    documents = list(text.documents)
    if len(documents) == 1:
        middle = len(documents[0]) // 2
        documents = [part for part in (documents[0][:middle], documents[0][middle:]) if part]
    if len(documents) < 2:
        raise UsageError(f"corpus '{text.corpus}' has too little text to calibrate and to measure on")
    window, ids, taken = min(WINDOW, context), list[int](), 0
    for document in documents[: len(documents) // 2]:
        if len(ids) > calibration:
            break
        ids += [*tokenizer.encode(document), tokenizer.end]
        taken += 1
    rest = replace(text, documents=tuple(documents[taken:]))
    return QuantiseText(windows(ids[: calibration + 1], window), first_tokens(rest, tokenizer, measured))


def windows(ids: Sequence[int], window: int) -> tuple[Batch, ...]:
    """Tokens, one after another, as batches of windows; what is left over is dropped. Raises: UsageError for too few."""
    count = (len(ids) - 1) // window
    if count < 1:
        window, count = len(ids) - 1, 1
    if window < 1:
        raise UsageError("there is too little text to calibrate on")
    whole = torch.tensor(ids[: count * window + 1])
    inputs, targets = whole[:-1].view(count, window), whole[1:].view(count, window)
    starts = range(0, count, ROWS)
    return tuple(Batch(Inputs(inputs[at : at + ROWS]), targets[at : at + ROWS]) for at in starts)
