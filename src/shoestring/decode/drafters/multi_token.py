"""Drafts of the heads that a model was trained with."""

from collections.abc import Sequence

import torch

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import Inputs
from shoestring.contract.model import LanguageModel
from shoestring.contract.multi_token import heads_of
from shoestring.decode.choosing import ahead, changed_logits, next_token, put
from shoestring.decode.row import Draft, Row
from shoestring.method import Fraction, method


@method(
    "decode",
    kind="drafter",
    name="multi_token",
    paper="Better & Faster Large Language Models via Multi-token Prediction, arXiv:2404.19737",
    claim="models trained with 4-token prediction are up to 3 times faster at inference, even with large batches",
    cost="a feed-forward block and the output layer for each token of a draft, all at once; no cache",
)
class MultiTokenDrafter:
    """The heads for later tokens, which the model was trained with, draft from its last hidden state.

    Of the hidden state from which the latest token was chosen, head k says what stands k - 1 places after that token, whatever it
    was: the heads know nothing of each other. A draft ends before a token whose head is not sure, as for `draft_model`.

    The model carries the heads: it is trained with `--edits multi_token_heads --objective multi_token`.

    target: the model that writes.
    confidence: the least probability of a head's likeliest token; 0: drafts have n - 1 tokens.
    """

    wants_hidden = True

    def __init__(self, target: LanguageModel, *, confidence: Fraction = 0.3) -> None:
        self.heads, self.confidence = heads_of(target), confidence
        self.most = self.heads.ahead - 1
        with torch.inference_mode():
            reading = target.read(Inputs(torch.zeros(1, 1, dtype=torch.int64, device=target.device)))
        self.model_head = reading.head
        self._charge = Charge(flops=reading.cost.flops, moved=reading.cost.moved, read=1, calls=1)

    def propose(self, rows: Sequence[Row], most: Sequence[int]) -> list[Draft]:
        """As `Drafter.propose`."""
        asked = [(row, limit) for row, limit in zip(rows, most, strict=True) if row.hidden is not None and limit > 0]
        drafts: dict[int, list[int]] = {row.number: [] for row in rows}
        if asked:
            count = min(self.most, max(limit for _, limit in asked))
            with torch.inference_mode():
                states = torch.stack([row.hidden for row, _ in asked if row.hidden is not None])
                later = torch.stack([head(states) for head in list(self.heads.heads)[:count]])
                logits = self.model_head.logits(later).float().cpu()
            share = self.heads.flops(len(asked)) * count // self.most
            flops = share + self.model_head.flops(len(asked) * count)
            self._charge += Charge(flops=flops, moved=self.heads.moved * count // self.most, calls=1)
            for place, (row, limit) in enumerate(asked):
                going = ahead(row)
                for step in range(min(limit, count)):
                    changed = changed_logits(going, logits[step, place])
                    if not float(changed.softmax(0).max()) >= self.confidence:
                        break
                    token = next_token(going, changed)
                    if token in row.request.ends:
                        break
                    put(going, token)
                    drafts[row.number].append(token)
        return [Draft(drafts[row.number]) for row in rows]

    def spent(self) -> Charge:
        """As `Drafter.spent`."""
        charge, self._charge = self._charge, NOTHING
        return charge

    def drop(self, row: Row) -> None:
        """Nothing is kept of a row."""
