"""Rows that are likely to go through the same experts decode together."""

from collections.abc import Sequence
from typing import Any

import torch

from shoestring.contract.experts import ExpertLayer
from shoestring.decode.expert_policy import ExpertName
from shoestring.decode.grouped_rows import GroupScheduler
from shoestring.decode.row import Row
from shoestring.errors import UsageError
from shoestring.method import Count, method


@method(
    "decode",
    kind="scheduler",
    name="expert_groups",
    paper="ExpertFlow: Optimized Expert Activation and Token Allocation for Efficient Mixture-of-Experts Inference, "
    "arXiv:2410.17954",
    claim="tokens that are put anew into batches by their experts activate fewer of them a batch",
    cost="a product of each router with the embedding of a token, once a token of the vocabulary; rows wait for their group",
)
class ExpertGroups(GroupScheduler):
    """Each pass decodes `rows` rows, chosen so that their next tokens are likely to ask for few experts between them.

    Xin He et al., 2024, arXiv:2410.17954.

    A token's experts are guessed by its embedding: E_l = the `guesses` best of router_l(rms_norm(embedding)), in each layer l. The
    group begins with the row that waited the most passes; then comes, again and again, the row that adds the fewest (l, expert) to
    those of the group; of equals, the one that waited longer. Rows that waited `patience` passes come first.

    Different from the paper: whole rows are regrouped, as their caches belong to them, and the guess is the routers' own, without
    what came before the token. Written from the abstract.

    target: the model that writes. rows: that decode in a pass, at most. guesses: experts of a token in each layer.
    patience: passes that a row waits at most.
    Raises: UsageError for a model without experts.
    """

    def __init__(self, target: Any, *, rows: Count = 8, guesses: Count = 2, patience: Count = 4) -> None:
        super().__init__()
        modules = target.modules() if isinstance(target, torch.nn.Module) else ()
        self._layers = [module for module in modules if isinstance(module, ExpertLayer) and not module.follows]
        if not self._layers:
            raise UsageError("expert_groups is for models with experts, and this one has none")
        self._embedding = target.get_input_embeddings()
        self.rows, self.guesses, self.patience = rows, guesses, patience
        self._known: dict[int, frozenset[ExpertName]] = {}

    @torch.no_grad()
    def experts_of(self, token: int) -> frozenset[ExpertName]:
        """Those that a token is likely to go to."""
        if token not in self._known:
            weight = self._embedding.weight
            x = torch.nn.functional.rms_norm(weight[token].float(), weight.shape[1:])[None].to(weight.dtype)
            found = [
                ExpertName(number, expert)
                for number, layer in enumerate(self._layers)
                for expert in layer.guess(x)[0].topk(min(self.guesses, layer.experts)).indices.tolist()
            ]
            self._known[token] = frozenset(found)
        return self._known[token]

    def group(self, decoding: Sequence[Row]) -> list[Row]:
        """As `GroupScheduler.group`."""
        left = sorted(decoding, key=lambda row: -self.waited[row.number])  # stable: of equals, the first
        late = sum(self.waited[row.number] >= self.patience for row in left)
        group = [left.pop(0) for _ in range(min(self.rows, max(1, late), len(left)))]
        asked = {expert for row in group for expert in self.experts_of(row.tokens[-1])}
        while left and len(group) < self.rows:
            nearest = min(left, key=lambda row: len(self.experts_of(row.tokens[-1]) - asked))
            left.remove(nearest)
            group.append(nearest)
            asked |= self.experts_of(nearest.tokens[-1])
        there = {row.number for row in group}
        return [row for row in decoding if row.number in there]
