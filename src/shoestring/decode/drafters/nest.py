"""Drafts of a datastore: what followed where the model thought much the same."""

from collections.abc import Sequence
from pathlib import Path

import torch

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.model import LanguageModel
from shoestring.decode.datastore import Datastore
from shoestring.decode.row import Draft, Row
from shoestring.method import Count, method


@method(
    "decode",
    kind="drafter",
    name="nest",
    paper="Nearest Neighbor Speculative Decoding for LLM Generation and Attribution, arXiv:2405.19325",
    claim="1.8x faster with Llama-2-Chat 70B, with better generations and their sources; of the whole method",
    cost="2 N width operations a draft for a datastore of N entries; no model is asked",
)
class NEST:
    """Drafts are spans of a corpus, found by what the model thinks.

    Of the `neighbours` nearest entries to the model's last hidden state, those count whose token is the one
    that was chosen there; the draft is what followed the nearest of them. Where none has it, there is no draft.

    With exact acceptance the text is the model's own. The paper mixes the model's probabilities with the neighbours' (`knn_lm`
    does) and accepts spans leniently (`nest` among the acceptances).

    target: the model that writes. place: a file that `Datastore.save` wrote.
    most: tokens of a draft. neighbours: entries that are looked at.
    """

    wants_hidden = True

    def __init__(self, target: LanguageModel, place: Path, *, most: Count = 8, neighbours: Count = 16) -> None:
        self.most, self.neighbours = most, neighbours
        self.store = Datastore.read(place, target)
        self.sources: dict[int, int] = {}
        """Of each row, the number of the text from which its last draft is."""
        self._charge = NOTHING

    def propose(self, rows: Sequence[Row], most: Sequence[int]) -> list[Draft]:
        """As `Drafter.propose`."""
        asked = [row for row in rows if row.hidden is not None]
        if not asked:
            return [Draft() for _ in rows]
        queries = torch.stack([row.hidden for row in asked if row.hidden is not None]).float().cpu()
        _, places = self.store.search(queries, self.neighbours)
        self._charge += Charge(flops=self.store.flops(len(asked)), moved=self.store.keys.nbytes)
        near = {row.number: found for row, found in zip(asked, places.tolist(), strict=True)}
        return [self._span(row, near.get(row.number, ()), limit) for row, limit in zip(rows, most, strict=True)]

    def _span(self, row: Row, places: Sequence[int], limit: int) -> Draft:
        """What followed the nearest of these entries that has the row's last token."""
        for place in places:
            if int(self.store.tokens[place]) == row.tokens[-1]:
                self.sources[row.number] = int(self.store.texts[place])
                return Draft(self.store.after(place, min(limit, self.most)))
        return Draft()

    def spent(self) -> Charge:
        """As `Drafter.spent`."""
        charge, self._charge = self._charge, NOTHING
        return charge

    def drop(self, row: Row) -> None:
        """As `Drafter.drop`."""
        self.sources.pop(row.number, None)
