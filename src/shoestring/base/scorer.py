"""Any model that can be opened, as a scorer of texts: what choosing data by a model needs."""

from collections.abc import Sequence

import numpy as np

from shoestring.base.likelihood import Units, summed, window
from shoestring.base.open_model import open_model
from shoestring.base.text import Text
from shoestring.contract.model import LanguageModel
from shoestring.contract.scorer import Scored
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import UsageError


class ModelScorer:
    """A model and its tokenizer as a `Scorer`. digest: of both. context: tokens of a window; None: as many as the model reads."""

    def __init__(self, model: LanguageModel, tokenizer: TextTokenizer, digest: str, context: int | None = None) -> None:
        self.model, self.tokenizer, self.digest = model, tokenizer, digest
        self.context = window(model, context)

    def score(self, texts: Sequence[str]) -> Scored:
        """The likelihood of each text, read by itself in windows one after the other."""
        units = Units("documents", np.array([len(text.encode()) for text in texts], dtype=np.float64))
        text = Text(tuple(texts), "", None, len(texts))
        nats, tokens, _, spent = summed(self.model, self.tokenizer, text, units, self.context)
        return Scored(nats, np.maximum(tokens.astype(np.int64), 1), spent)


def open_scorer(place: str) -> ModelScorer:
    """The model at a place as a scorer. Raises: UsageError where it cannot be opened or has no tokenizer."""
    opened = open_model(place)
    if opened.tokenizer is None:
        raise UsageError(f"{place} has no tokenizer: it cannot score text")
    return ModelScorer(opened.model, opened.tokenizer, f"{opened.about.digest} {opened.tokenizer.fingerprint}")
