"""Any model that can be trained, frozen, as a writer after vectors in the place of tokens."""

import hashlib
import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.base.open_model import open_model
from shoestring.base.writer import Writer
from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.author import Authored, AuthoredText
from shoestring.contract.batch import Inputs
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModule, require_causal
from shoestring.decode.sampling import Sampling, choose
from shoestring.errors import UsageError
from shoestring.tune.prefix_embedding import with_prefixes

ROWS = 8
"""Texts read or written at a time."""

UNTOLD = -100
"""In the place of a target that is none."""


class ModelPrefixAuthor:
    """A `Writer` as a `PrefixAuthor`. Its model is frozen, and is this object's alone from here on.

    Texts are written with the model's own cache, in a loop of its own: the engine that decodes takes tokens and no vectors.
    Rows of a batch that have ended are read on until the last one has; the charge has them as wasted.
    """

    def __init__(self, writer: Writer) -> None:
        model = writer.opened.model
        if not isinstance(model, LanguageModule):
            raise UsageError(
                f"{writer.opened.about.place} is of the kind '{writer.opened.about.kind}', which reads no vectors"
            )
        require_causal(model, "writing after vectors")
        self.writer, self.model = writer, model.eval()
        self.prefix = with_prefixes(model)
        model.cost(Shape(1, 1))  # a model may have to read a token to know its cost: before rows begin with vectors
        parts = (writer.opened.about.digest, writer.tokenizer.fingerprint)
        self.digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def embeddings(self) -> tuple[Tensor, float]:
        some = torch.arange(min(self.model.about.vocabulary, 4096), device=self.model.device)
        with torch.no_grad():
            found = self.prefix.base(some).float()
        return found.mean(0).cpu(), float(found.std())

    @torch.no_grad()
    def summaries(self, texts: Sequence[str], tokens: int) -> tuple[Tensor, Charge]:
        made, spent = [], NOTHING
        for start in range(0, len(texts), ROWS):
            ids = [self.writer.text_ids(text)[:tokens] for text in texts[start : start + ROWS]]
            rows = self._padded(ids)
            hidden = self.model.read(Inputs(rows)).hidden.float().cpu()
            made += [line[: len(own)].mean(0) for line, own in zip(hidden, ids, strict=True)]
            cost = self.model.cost(Shape(len(rows), rows.shape[1], outputs=0))
            spent += Charge(flops=cost.flops, moved=cost.moved, read=rows.numel(), calls=1)
        return torch.stack(made), spent

    def loss(self, prefixes: Tensor, texts: Sequence[str], tokens: int) -> tuple[Tensor, Charge]:
        length = self._length(prefixes, tokens)
        begin, answers = self._begin(), list[list[int]]()
        for text in texts:
            ids = self.writer.tokenizer.encode(text)
            answers.append([*ids, self.writer.tokenizer.end] if len(ids) < tokens else ids[:tokens])
        # every row begins with as many tokens as it has vectors, which stand in their place
        rows = self._padded([[0] * prefixes.shape[1] + begin + ids[:-1] for ids in answers])
        targets = self._padded(answers, UNTOLD)
        with self.prefix.before(prefixes.to(self.model.device)):
            reading = self.model.read(Inputs(rows))
        logits = reading.head.logits(reading.hidden[:, length - 1 :]).float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=UNTOLD)
        cost = self.model.cost(Shape(len(rows), rows.shape[1], outputs=targets.shape[1], backward=True))
        told = sum(map(len, answers))
        return loss, Charge(flops=cost.flops, moved=cost.moved, tokens=told, calls=1)

    @torch.no_grad()
    def written(self, prefixes: Tensor, seeds: Sequence[int], tokens: int, temperature: float) -> Authored:
        self._length(prefixes, tokens)
        found, spent = list[AuthoredText](), NOTHING
        for start in range(0, len(seeds), ROWS):
            texts, more = self._batch(
                prefixes[start : start + ROWS], seeds[start : start + ROWS], tokens, Sampling(temperature=temperature)
            )
            found, spent = found + texts, spent + more
        return Authored(tuple(found), spent)

    def _batch(
        self, prefixes: Tensor, seeds: Sequence[int], tokens: int, sampling: Sampling
    ) -> tuple[list[AuthoredText], Charge]:
        count, draws = len(seeds), [random.Random(seed) for seed in seeds]
        rows = self._padded([[0] * prefixes.shape[1] + self._begin()] * count)
        past, cache = 0, self.model.new_cache(count, rows.shape[1] + tokens)
        answers, ended, spent, wasted = [list[int]() for _ in seeds], [False] * count, NOTHING, 0
        with self.prefix.before(prefixes.to(self.model.device)):
            reading = self.model.read(Inputs(rows), cache)
        for step in range(tokens):
            cost = self.model.cost(Shape(count, rows.shape[1], past, outputs=1))
            spent += Charge(flops=cost.flops, moved=cost.moved, read=rows.numel(), calls=1)
            logits = reading.head.logits(reading.hidden[:, -1]).cpu()
            following = [choose(line, sampling, one.random()) for line, one in zip(logits, draws, strict=True)]
            for row, token in enumerate(following):
                if ended[row]:
                    wasted += 1
                elif token in self.writer.ends:
                    ended[row] = True
                else:
                    answers[row].append(token)
            if all(ended) or step == tokens - 1:
                break
            past, rows = past + rows.shape[1], torch.tensor(following, device=self.model.device)[:, None]
            reading = self.model.read(Inputs(rows), cache)
        spent += Charge(written=sum(map(len, answers)), wasted=wasted)
        texts = [self.writer.tokenizer.decode(ids).strip() for ids in answers]
        return [AuthoredText(text, end) for text, end in zip(texts, ended, strict=True)], spent

    def _begin(self) -> list[int]:
        begin = self.writer.tokenizer.begin
        return [] if begin is None else [begin]

    def _length(self, prefixes: Tensor, tokens: int) -> int:
        """Places before a text. Raises: UsageError where the model does not read so much."""
        length = prefixes.shape[1] + len(self._begin())
        if length + tokens > self.writer.context:
            raise UsageError(
                f"{length} places before a text of {tokens} tokens are more than the {self.writer.context} that "
                f"{self.writer.opened.about.place} reads: set length or tokens smaller"
            )
        return length

    def _padded(self, rows: Sequence[Sequence[int]], value: int = 0) -> Tensor:
        """[rows, longest], on the model's device. It is causal, so nothing sees the padding at the end."""
        longest = max(map(len, rows))
        return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], device=self.model.device)


def open_prefix_author(place: str) -> ModelPrefixAuthor:
    """The model at a place as a writer after vectors. Raises: UsageError where it has no tokenizer, or reads no vectors."""
    return ModelPrefixAuthor(Writer.of(open_model(place)))
