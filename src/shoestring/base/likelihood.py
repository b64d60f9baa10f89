"""How likely a model holds a text: nats a token and bits a byte, with intervals, and what working them out took.

Each document is read by itself, in windows of the model's context, one after the other. Its first token follows the token that the
tokenizer puts before each text, or else the end token, as after the document before. The end of a document is not predicted.
So every byte of the text is counted once, and bits a byte can be compared between tokenizers: they are the length of a code
for the text.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shoestring.base.interval import Estimate, difference, effective, ratio
from shoestring.base.text import Text
from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import IGNORED, Inputs
from shoestring.contract.model import Head, LanguageModel, require_causal
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import ShoestringError, UsageError

PLACES = 4096
"""Places of a pass, padding included; one window may have more."""

ALIKE = 0.75
"""The length of the shortest window of a pass at least, of the longest: the rest is padding, which is read in vain."""

LOGITS = 1 << 24
"""Logits that are held at a time: 64 MiB in float32."""

ENOUGH = 8
"""Documents of equal size that are enough for an interval by documents."""

STRETCHES = 16
"""Pieces of equal length that the text is cut into where it has fewer documents."""


@dataclass(frozen=True)
class Units:
    """What an interval is worked out over: pieces of text that count as independent.

    kind: 'documents', or 'stretches' of about as many bytes each, where there are too few documents.
    sizes: [n] bytes of each.
    """

    kind: str
    sizes: np.ndarray

    @classmethod
    def of(cls, text: Text) -> "Units":
        """Of a text, whoever reads it."""
        sizes = np.array([len(document.encode()) for document in text.documents], dtype=np.float64)
        if effective(sizes) >= ENOUGH:
            return cls("documents", sizes)
        return cls("stretches", np.full(STRETCHES, sizes.sum() / STRETCHES))


@dataclass(frozen=True)
class TextLikelihood:
    """What a model makes of a text.

    units: what the intervals are over.
    nats, tokens: [n] of each unit.
    context: tokens of a window at most.
    spent: what it took.
    """

    units: Units
    nats: np.ndarray
    tokens: np.ndarray
    context: int
    spent: Charge

    @property
    def targets(self) -> int:
        """Tokens that were predicted."""
        return int(self.tokens.sum())

    @property
    def bits_per_byte(self) -> Estimate:
        """Comparable across tokenizers."""
        return ratio(self.nats / math.log(2), self.units.sizes)

    @property
    def nats_per_token(self) -> Estimate:
        """The loss that training lowers."""
        return ratio(self.nats, self.tokens)

    def over(self, base: "TextLikelihood") -> Estimate:
        """Bits a byte more than `base` needs for the same text, paired by its units."""
        return difference(self.nats / math.log(2), base.nats / math.log(2), self.units.sizes)


def first_tokens(text: Text, tokenizer: TextTokenizer, most: int) -> Text:
    """The first documents of a text, about `most` tokens together: the last of them is cut."""
    kept, left = list[str](), most
    for document in text.documents:
        count = len(tokenizer.encode(document))
        kept.append(document if count <= left else document[: max(len(document) * left // count, 1)])
        left -= count
        if left <= 0:
            break
    return replace(text, documents=tuple(kept))


def window(model: LanguageModel, context: int | None) -> int:
    """The tokens of a window: those asked for, or as many as the model reads. Raises: UsageError for more than that."""
    most = model.about.context
    if context is not None and context > most:
        raise UsageError(f"a window of {context} tokens is too long: this model reads {most}")
    return context or most


class TextWindow(NamedTuple):
    """Some tokens of a document.

    inputs: [t] ids. targets: [t] ids, or IGNORED. units: [t] int64, the unit that each target is of.
    """

    inputs: list[int]
    targets: list[int]
    units: np.ndarray


def likelihood(
    model: LanguageModel, tokenizer: TextTokenizer, text: Text, context: int | None = None
) -> TextLikelihood:
    """What `model` makes of `text`.

    tokenizer: the model's own.
    context: tokens of a window; None: as many as the model reads.
    Raises: UsageError for a context that is beyond the model's; ShoestringError where the likelihood is not finite, or the
    tokenizer makes tokens that the model has not.
    """
    units, context = Units.of(text), window(model, context)
    return TextLikelihood(units, *summed(model, tokenizer, text, units, context))


@torch.no_grad()
def summed(
    model: LanguageModel, tokenizer: TextTokenizer, text: Text, units: Units, context: int
) -> tuple[np.ndarray, np.ndarray, int, Charge]:
    """(nats [n] and tokens [n] of each unit, the context, what that took). Raises: ShoestringError, as `likelihood`."""
    first = tokenizer.end if tokenizer.begin is None else tokenizer.begin
    nats, tokens = np.zeros(len(units.sizes)), np.zeros(len(units.sizes))
    # alike in length beside each other: less padding; the order within a length is the text's
    windows = sorted(_windows(text, tokenizer, first, units, context), key=lambda each: -len(each.targets))
    for each in windows:
        if max(max(each.inputs), max(each.targets)) >= model.about.vocabulary:
            raise ShoestringError(
                f"the tokenizer has {tokenizer.vocabulary} tokens and the model {model.about.vocabulary}: they do not "
                "belong together"
            )
    spent = NOTHING
    for batch in batches(windows):
        found, took = log_probabilities(model, batch, tokenizer.end)
        spent += took
        for each, row in zip(batch, found.numpy(), strict=True):
            np.add.at(nats, each.units, -row[: len(each.targets)])
            np.add.at(tokens, each.units, 1)
    if not np.isfinite(nats).all():
        raise ShoestringError("the model gives no finite likelihood: its weights, or sums of them, are not finite")
    return nats, tokens, context, spent


def _windows(text: Text, tokenizer: TextTokenizer, first: int, units: Units, context: int) -> Iterator[TextWindow]:
    """The windows of each document, one after the other. first: the token before each."""
    size, before = units.sizes.sum(), 0
    for number, document in enumerate(text.documents):
        ids = tokenizer.encode(document)
        if units.kind == "documents":
            numbers = np.full(len(ids), number)
        else:
            lengths = tokenizer.byte_lengths.numpy()[ids]
            # a tokenizer that changes the text has other bytes in all: shares of the document's own
            share = (np.cumsum(lengths) - lengths) / max(lengths.sum(), 1)
            own = len(document.encode())
            numbers = ((before + share * own) * len(units.sizes) / size).astype(np.int64)
            numbers = numbers.clip(max=len(units.sizes) - 1)
            before += own
        row = [first, *ids]
        for start in range(0, len(ids), context):
            stop = min(start + context, len(ids))
            yield TextWindow(row[start:stop], ids[start:stop], numbers[start:stop])


def batches(windows: Sequence[TextWindow]) -> Iterator[list[TextWindow]]:
    """Windows that are read together, the longest first: as many as are about alike in length."""
    batch: list[TextWindow] = []
    for each in windows:
        longest = len(batch[0].targets) if batch else 0
        if batch and ((len(batch) + 1) * longest > PLACES or len(each.targets) < ALIKE * longest):
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch


def log_probabilities(model: LanguageModel, windows: Sequence[TextWindow], filler: int) -> tuple[Tensor, Charge]:
    """(float64 [B, T], the log-probability of each target, 0 beyond the end of a window; what that took)."""
    require_causal(model, "the likelihood of a text")
    sizes = [len(each.targets) for each in windows]
    inputs = torch.full((len(windows), max(sizes)), filler)
    targets = torch.full((len(windows), max(sizes)), IGNORED)
    for row, each in enumerate(windows):
        inputs[row, : sizes[row]] = torch.tensor(each.inputs)
        targets[row, : sizes[row]] = torch.tensor(each.targets)
    lengths = None if min(sizes) == max(sizes) else torch.tensor(sizes)
    reading = model.read(Inputs(inputs, lengths=lengths).to(model.device))
    wanted = targets.flatten().to(model.device)
    counted = (wanted >= 0).nonzero()[:, 0]
    hidden = reading.hidden.flatten(0, -2)
    found = torch.zeros(wanted.shape, dtype=torch.float64)
    rows = max(LOGITS // model.about.vocabulary, 1)
    for some in counted.split(rows):
        found[some.cpu()] = _chosen(reading.head, hidden[some], wanted[some]).double().cpu()
    flops = reading.cost.flops + reading.head.flops(len(counted))
    return found.view(targets.shape), Charge(flops=flops, read=targets.numel(), calls=1, moved=reading.cost.moved)


def _chosen(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    """float32 [n]: the log-probability of each target, from hidden states [n, width]."""
    logits = head.logits(hidden).float()
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
