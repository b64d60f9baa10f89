"""The held-out loss of a run's model, before and after: on the text, and the order of it, that the run was judged on."""

import torch

from shoestring.budget.ledger import EVALUATION, Ledger
from shoestring.data.dataset import Dataset
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import UsageError
from shoestring.model.transformer import Transformer
from shoestring.train.config import RunConfig
from shoestring.train.evaluate import Evaluator, Heldout, heldout_judge, heldout_windows

ROWS = 4
"""Sequences at once."""


class HeldoutText:
    """The held-out windows of a run. Called with a model, it says the model's loss in float32 and charges what that took.

    Raises: UsageError where the corpus no longer makes the run's tokens.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, tokenizer: TextTokenizer) -> None:
        if dataset.tokenizer.fingerprint != tokenizer.fingerprint:
            raise UsageError("the corpus has changed since the run: its held-out text is no measure of the run's model")
        windows, self.sequences = heldout_windows(config, dataset)
        self._evaluator = Evaluator(
            windows,
            dataset.tokenizer.byte_lengths,
            sequences=self.sequences,
            rows=ROWS,
            device="cpu",
            precision="float32",
            judge=heldout_judge(config),
        )

    @torch.no_grad()
    def __call__(self, model: Transformer, ledger: Ledger, event: str) -> Heldout:
        """The loss of `model`. event: the line of the ledger that it is charged as."""
        with ledger.clock("evaluate"):
            found = self._evaluator(model.eval())
        ledger.charge(found.spent, EVALUATION)
        ledger.write(event, loss=found.loss, bits_per_byte=found.bits_per_byte)
        return found
