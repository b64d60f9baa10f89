"""Replaced-token detection: say of every token whether it stood there."""

import zlib
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

from shoestring.budget.charge import Charge
from shoestring.budget.ledger import MODEL
from shoestring.config import Choice, Pick
from shoestring.contract.batch import IGNORED, Batch
from shoestring.contract.cost import Shape
from shoestring.contract.detector import detector_of
from shoestring.contract.model import LanguageModel
from shoestring.contract.objective import At, Judged, Loss
from shoestring.method import method
from shoestring.objective.cross_entropy import CrossEntropy
from shoestring.objective.generator import TokenGenerator
from shoestring.objective.masked_diffusion import weights_of
from shoestring.objective.teachers import TEACHER

GENERATOR = Pick("objective", "generator", default="ngram_table")
DEFAULT = GENERATOR.choice()


@method(
    "objective",
    name="replaced_tokens",
    paper="Efficient pre-training objectives for Transformers, arXiv:2104.09694",
    claim="input without mask tokens and a loss over all outputs make such training efficient; no complex generator is needed",
    cost="a pass of the model without its output layer, a small head at every token, and what the generator takes",
)
class ReplacedTokens:
    """The mean cross-entropy of 'was replaced', over all tokens.

    Luca Di Liello, Matteo Gabburo and Alessandro Moschitti, 2021, arXiv:2104.09694; after ELECTRA (Clark et al., 2020,
    arXiv:2003.10555).

        x~ = x, with a share of its tokens replaced by what a generator draws
        L = -1/N sum_i [r_i log sigmoid(d_i) + (1 - r_i) log sigmoid(-d_i)],   r_i = (x~_i is not x_i)

    d_i is what the model's detector (`--edits detector`) says at place i. No mask token is read. A token that the generator draws
    anew was not replaced. The model is an encoder: give it --model.causal false. Its held-out figure is the detector's loss, in
    nats a token; bits a byte are no measure of the text then.

    Targets that do not count while training on next tokens are never replaced, and do not count here.

    generator: what draws the tokens. share: of tokens that are replaced.
    """

    both_ways = True
    figure = "the loss of telling replaced tokens, which is no likelihood of the text"

    def __init__(
        self,
        cross_entropy: CrossEntropy,
        *,
        generator: Annotated[Choice, GENERATOR] = DEFAULT,
        share: Annotated[float, Interval(gt=0, lt=1)] = 0.15,
    ) -> None:
        self.generator: TokenGenerator = generator.build()
        self.share, self.teachers = share, self.generator.teachers

    def learn_from(self, *teachers: LanguageModel) -> None:
        """Take the models that the generator asks."""
        self.generator.learn_from(teachers)

    def count(self, batch: Batch) -> float:
        """The number of tokens that could be replaced, or the sum of their weights."""
        return float(weights_of(batch).double().sum())

    def __call__(self, model: LanguageModel, batch: Batch, at: At) -> Loss:
        """The mean loss. Raises: UsageError for a model without a detector."""
        detector, weights = detector_of(model), weights_of(batch)
        changed, asked = self.changed(batch, at.generator())
        reading = model.read(batch.inputs._replace(values=changed))
        scores = detector(reading.hidden).float()
        replaced = changed != batch.inputs.values
        losses = F.binary_cross_entropy_with_logits(scores, replaced.float(), reduction="none")
        mean = (losses * weights).sum() / weights.sum().clamp_min(1e-12)
        with torch.no_grad():
            found = ((scores > 0) & replaced).sum() / replaced.sum().clamp_min(1)
        body = model.cost(Shape(batch.rows, batch.inputs.length, outputs=0, backward=True)).flops
        spent = {MODEL: Charge(flops=body + detector.flops(changed.numel(), backward=True))}
        if self.teachers:
            spent[TEACHER] = asked
        return Loss(mean, spent, {"replaced": replaced.float().mean(), "found": found}, reading.auxiliary())

    def changed(self, batch: Batch, chance: torch.Generator) -> tuple[Tensor, Charge]:
        """(int64 [B, T], the text with tokens replaced; what the generator took)."""
        values = batch.inputs.values
        chosen = (torch.rand(values.shape, generator=chance) < self.share).to(values.device) & (weights_of(batch) > 0)
        tokens, spent = self.generator.replace(batch.inputs, chosen, chance)
        return values.masked_scatter(chosen, tokens), spent

    @torch.no_grad()
    def judge(self, model: LanguageModel, batch: Batch) -> Judged:
        """As `HeldoutJudge.judge`: what is replaced depends on the text of the batch."""
        detector, can = detector_of(model), weights_of(batch) > 0
        seed = zlib.crc32(batch.inputs.values.cpu().numpy().tobytes())
        changed, asked = self.changed(batch, torch.Generator().manual_seed(seed))
        reading = model.read(batch.inputs._replace(values=changed))
        replaced = (changed != batch.inputs.values).float()
        losses = F.binary_cross_entropy_with_logits(detector(reading.hidden).float(), replaced, reduction="none")
        flops = reading.cost.flops + detector.flops(changed.numel())
        spent = Charge(flops=flops, read=changed.numel()) + asked
        return Judged(losses.double() * can, batch.inputs.values.where(can, IGNORED), spent)
