"""Embeddings of frequent n-grams, listed from training text."""

from collections import Counter
from typing import Annotated, Any

import torch
from annotated_types import Interval

from shoestring.config import Choice
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Count, method


@method(
    "surgery",
    kind="edit",
    name="scone",
    paper="Scaling Embedding Layers in Language Models, arXiv:2502.01637",
    claim="outperforms a baseline of 1.9B parameters with half the FLOPs at inference, as n-grams and the model that "
    "embeds them grow",
    cost="counting n-grams of the calibration text; what the span `scone` costs",
)
class WithNgramEmbeddings:
    """Wrap the first layer in the span `scone`, with the n-grams that are most frequent in the text that edits may look at.

    Da Yu et al., 2025, arXiv:2502.01637. They count the whole training text, billions of tokens; here it is a sample of it, so that
    few n-grams are certain to be frequent. Only those that stand there twice or more are listed.

    count: n-grams at most. longest: tokens of one, at most. inner, hidden: as the span has them.
    """

    needs: frozenset[str] = frozenset({"text"})

    def __init__(
        self,
        *,
        count: Count = 1000,
        longest: Annotated[int, Interval(ge=2, le=5)] = 3,
        inner: Count = 32,
        hidden: Count = 128,
    ) -> None:
        self.count, self.longest, self.inner, self.hidden = count, longest, inner, hidden

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The n-grams. Raises: UsageError for a model that is not native, and for text in which nothing repeats."""
        self._wrap(model)
        counts = Counter[tuple[int, ...]]()
        for batch in evidence.text:
            values, documents = batch.inputs.values.tolist(), batch.inputs.documents
            owners = [[0] * len(row) for row in values] if documents is None else documents.tolist()
            for row, owner in zip(values, owners, strict=True):
                for size in range(2, self.longest + 1):
                    starts = range(len(row) - size + 1)
                    counts.update(tuple(row[at : at + size]) for at in starts if owner[at] == owner[at + size - 1])
        found = sorted((gram for gram, times in counts.items() if times > 1), key=lambda gram: (-counts[gram], gram))
        if not found:
            raise UsageError("scone: no n-gram stands twice in the text that was looked at: give longer text")
        return Decision({"ngrams": [" ".join(map(str, gram)) for gram in found[: self.count]], "seed": evidence.seed})

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with the span around its first layer."""
        options: dict[str, Any] = {"ngrams": decision.values["ngrams"], "inner": self.inner, "hidden": self.hidden}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(decision.values["seed"]))
            self._wrap(model)("0", Choice.of("model", "scone", kind="span", **options))
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model as it is: the span is a part of it."""
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        """In a line."""
        return f"scone: {len(decision.values['ngrams'])} n-grams of up to {self.longest} tokens have embeddings of their own"

    @staticmethod
    def _wrap(model: LanguageModule) -> Any:
        wrap = getattr(model.anatomy(), "wrap", None)
        if wrap is None:
            raise UsageError("scone is for native models: the layers of a wrapped one are its makers' own")
        return wrap
