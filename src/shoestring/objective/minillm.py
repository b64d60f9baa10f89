"""Learning from what a teacher thinks of the student's own texts."""

import torch
from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.budget.ledger import MODEL, account
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModel
from shoestring.contract.objective import At, Loss
from shoestring.errors import UsageError
from shoestring.method import Count, Decay, Fraction, method
from shoestring.objective.cross_entropy import CrossEntropy
from shoestring.objective.teachers import TEACHER
from shoestring.objective.token_distillation import TokenDistillation, kullback_leibler

ROLLOUT = account("rollout", "texts that the model writes to learn from")


@method(
    "objective",
    name="minillm",
    paper="Knowledge Distillation of Large Language Models, arXiv:2306.08543",
    claim="more precise answers, lower exposure bias and better calibration than with forward divergences, from 120 M to 13 B",
    cost="a text written by the student, with a pass of both models a token, and a pass of both over it",
)
class MiniLLM(TokenDistillation):
    """The reverse divergence over texts that the student writes, by policy gradients, beside the loss on the text.

    A row's first `prompt` tokens begin a text; y_1 .. y_L follow, drawn from p~ = mix p + (1 - mix) q. With q the student, p the
    teacher, w_t = q(y_t) / p~(y_t), held fixed, and r_t = log p(y_t) / q(y_t):

        gradient = mean over texts and t of  w_t ( grad KL(q_t || p_t)  -  R_t grad log q(y_t) ),
        R_t = mean of r_{t'} over t' > t       (0 after the last)

    so what a token leads to counts beside what it is, however long the text. L = weight of that, and (1 - weight) of the loss on
    the batch's text. One step is taken for each text, so that the paper's clipping of ratios has nothing to clip.
    A row has one document: with data.packing 'isolated' a prompt may run across documents.

    teacher: the place of a model; '': the base of the run.
    prompt: tokens of a row that begin a text. written: L.
    mix: the teacher's share of what is drawn from.
    weight: of the divergence.
    """

    def __init__(
        self,
        cross_entropy: CrossEntropy,
        *,
        teacher: str = "",
        prompt: Count = 32,
        written: Count = 32,
        mix: Decay = 0.2,
        weight: Fraction = 0.5,
    ) -> None:
        super().__init__((teacher,), weight=weight, temperature=1.0)
        self.prompt, self.written, self.mix = prompt, written, mix

    def divergence(self, taught: Tensor, own: Tensor) -> Tensor:
        """As `TokenDistillation.divergence`."""
        return kullback_leibler(own, taught)

    def weight_at(self, at: At) -> float:
        """0: on the batch's own text there is the cross-entropy alone."""
        return 0.0

    def __call__(self, model: LanguageModel, batch: Batch, at: At) -> Loss:
        """The mean loss. Raises: UsageError where a text does not fit the context."""
        (teacher,) = self._require(model).models
        length = self.prompt + self.written
        if batch.inputs.length < self.prompt or min(model.about.context, teacher.about.context) < length:
            raise UsageError(f"minillm: a prompt of {self.prompt} and {self.written} tokens do not fit the context")
        plain = super().__call__(model, batch, at)
        texts, drawing = self._written(model, teacher, batch.inputs.values[:, : self.prompt], at)
        own, parts = self._long_and_single(model, teacher, texts)
        shape = Shape(batch.rows, length - 1, outputs=self.written, backward=True)
        judged = Charge(flops=teacher.cost(shape._replace(backward=False)).flops, read=texts.numel(), calls=1)
        spent = {
            MODEL: plain.spent[MODEL] + Charge(flops=model.cost(shape).flops),
            TEACHER: drawing[TEACHER] + judged,
            ROLLOUT: drawing[ROLLOUT],
        }
        mean = self.weight * own + (1 - self.weight) * plain.mean
        return Loss(mean, spent, {**parts, "next_token": plain.parts["next_token"]}, plain.auxiliary)

    @torch.no_grad()
    def _written(
        self, model: LanguageModel, teacher: LanguageModel, prompts: Tensor, at: At
    ) -> tuple[Tensor, dict[str, Charge]]:
        """(int64 [B, prompt + L], the prompts and what follows them; what drawing took)."""
        generator = at.generator(prompts.device)
        asked = (model, teacher) if self.mix else (model,)
        caches = [each.new_cache(len(prompts), self.prompt + self.written) for each in asked]
        texts, coming, spent = prompts, prompts, [NOTHING, NOTHING]
        for _ in range(self.written):
            shares = []
            for place, (each, cache) in enumerate(zip(asked, caches, strict=True)):
                reading = each.read(Inputs(coming), cache)
                shares.append(reading.head.logits(reading.hidden[:, -1]).float().softmax(-1))
                flops = reading.cost.flops + reading.head.flops(len(prompts))
                spent[place] += Charge(flops=flops, read=coming.numel(), calls=1)
            drawn = shares[0] if len(shares) == 1 else self.mix * shares[1] + (1 - self.mix) * shares[0]
            coming = torch.multinomial(drawn, 1, generator=generator)
            texts = torch.cat([texts, coming], dim=1)
        written = Charge(written=len(prompts) * self.written)
        return texts, {ROLLOUT: spent[0] + written, TEACHER: spent[1]}

    def _long_and_single(
        self, model: LanguageModel, teacher: LanguageModel, texts: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(what has the gradient above, figures)."""
        inputs, chosen = Inputs(texts[:, :-1]), texts[:, self.prompt :, None]
        ours = model.read(inputs)
        q = ours.head.logits(ours.hidden[:, self.prompt - 1 :]).float().log_softmax(-1)
        with torch.no_grad():
            theirs = teacher.read(inputs)
            p = theirs.head.logits(theirs.hidden[:, self.prompt - 1 :]).float().log_softmax(-1)
        own, known = q.gather(-1, chosen)[..., 0], p.gather(-1, chosen)[..., 0]
        with torch.no_grad():
            mixed = torch.logaddexp(known + _log(self.mix), own + _log(1 - self.mix))
            weights = (own - mixed).exp()
            rewards = known - own
            after = rewards.flip(1).cumsum(1).flip(1) - rewards
            left = torch.arange(self.written - 1, -1, -1, device=texts.device)
            returns = after / left.clamp_min(1)
        single = kullback_leibler(q.flatten(0, 1), p.flatten(0, 1)).view_as(own)
        loss = (weights * (single - returns * own)).mean()
        return loss, {"divergence": single.detach().mean(), "reward": rewards.mean()}


def _log(share: float) -> float:
    return float(torch.tensor(share, dtype=torch.float64).log())
