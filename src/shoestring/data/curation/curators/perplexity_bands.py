"""Documents by how a model finds them: neither the plainest nor the strangest."""

import numpy as np

from shoestring.data.curation.account import Account
from shoestring.data.curation.column import KEPT, Column
from shoestring.data.curation.documents import Documents
from shoestring.data.curation.scored import scored
from shoestring.errors import UsageError
from shoestring.method import Fraction, method

REASONS = ("perplexity below the band", "perplexity above the band")


@method(
    "data",
    kind="curation",
    name="perplexity_bands",
    paper="When Less is More: Investigating Data Pruning for Pretraining LLMs at Scale, arXiv:2309.04564",
    claim="the middle of the distribution of perplexity under a reference model makes better training text than the whole",
    cost="one pass of the model over the text, charged",
)
class PerplexityBands:
    """Keeps the documents whose perplexity exp(nats / tokens) lies between two quantiles of the documents it is given.

    Column `perplexity`.

    model: where the model that scores lies: the folder of a run or of transformers, a GGUF file.
    lowest: quantile below which documents are dropped.
    highest: quantile above which documents are dropped.
    """

    def __init__(self, *, model: str, lowest: Fraction = 0.25, highest: Fraction = 0.75) -> None:
        if lowest >= highest:
            raise UsageError(f"perplexity_bands: lowest = {lowest} leaves nothing below highest = {highest}")
        self.model, self.lowest, self.highest = model, lowest, highest

    def __call__(self, documents: Documents, account: Account) -> Column:
        nats, tokens = scored(documents, self.model, account)
        each = nats / tokens
        if not len(each):
            return Column(np.empty(0, np.int16), REASONS, {"perplexity": each})
        low, high = np.quantile(each, [self.lowest, self.highest])
        dropped = np.where(each < low, 0, np.where(each > high, 1, KEPT)).astype(np.int16)
        return Column(dropped, REASONS, {"perplexity": np.exp(np.minimum(each, 700.0))})
