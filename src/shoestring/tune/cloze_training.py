"""A classifier of cloze questions as it is trained and asked, with all that it takes counted."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.tune.cloze import ClozePattern, scores


class ClozeClassifier:
    """What trains and asks one model. Whatever of it takes gradients is trained.

    steps: of each training. batch: texts of a step, and of a pass. lr: of AdamW. generator: draws the order of the texts.
    Raises: UsageError where nothing takes a gradient.
    """

    def __init__(self, model: LanguageModule, *, steps: int, batch: int, lr: float, generator: torch.Generator) -> None:
        self.model, self.steps, self.batch, self.lr, self.generator = model, steps, batch, lr, generator
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.trained:
            raise UsageError("nothing in this model takes a gradient: give it adapters first")
        self.spent = NOTHING

    def train(self, pattern: ClozePattern, texts: Sequence[str], goals: Tensor) -> None:
        """`steps` steps on the cross-entropy between goals [texts, classes] and what the pattern says."""
        optimiser, order = torch.optim.AdamW(self.trained, lr=self.lr, weight_decay=0.0), list[int]()
        for _ in range(self.steps):
            while len(order) < min(self.batch, len(texts)):
                order += torch.randperm(len(texts), generator=self.generator).tolist()
            chosen, order = order[: self.batch], order[self.batch :]
            with torch.enable_grad():
                found, flops = scores(self.model, pattern, [texts[place] for place in chosen])
                loss = -(goals[chosen].to(found.device) * found.log_softmax(1)).sum(1).mean()
                loss.backward()
            self.spent += Charge(flops=flops)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def said(self, pattern: ClozePattern, texts: Sequence[str]) -> Tensor:
        """[texts, classes]: the log-likelihoods of the words of each class."""
        found, spent = asked(self.model, pattern, texts, self.batch)
        self.spent += spent
        return found

    def state(self) -> list[Tensor]:
        """What is trained, as it is."""
        return [parameter.detach().clone() for parameter in self.trained]

    @torch.no_grad()
    def restore(self, state: Sequence[Tensor]) -> None:
        """Back to a state."""
        for parameter, value in zip(self.trained, state, strict=True):
            parameter.copy_(value)


@torch.no_grad()
def asked(model: LanguageModule, pattern: ClozePattern, texts: Sequence[str], batch: int) -> tuple[Tensor, Charge]:
    """([texts, classes], what a model says of texts by a pattern, as `scores`; what asking took)."""
    found, spent = list[Tensor](), NOTHING
    for start in range(0, len(texts), batch):
        part, flops = scores(model, pattern, texts[start : start + batch])
        found.append(part.cpu())
        spent += Charge(flops=flops, read=part.numel(), calls=1)
    return torch.cat(found), spent
