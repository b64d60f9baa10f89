"""DiDi-Instruct: a model of masked diffusion learns to fill in whole texts in few steps, as another does in many."""

from typing import Annotated, NamedTuple

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

from shoestring.budget.charge import Charge
from shoestring.budget.ledger import MODEL
from shoestring.contract.batch import HIDDEN, Batch, Inputs
from shoestring.contract.cost import Shape
from shoestring.contract.detector import TokenDetector, detector_of
from shoestring.contract.model import LanguageModel
from shoestring.contract.objective import At, Judged, Loss
from shoestring.errors import UsageError
from shoestring.method import Count, Positive, method
from shoestring.objective.cross_entropy import CrossEntropy
from shoestring.objective.masked_diffusion import MaskedDiffusion, require_filler
from shoestring.objective.teachers import TEACHER


class FilledText(NamedTuple):
    """What the student made of hidden texts.

    texts: int64 [R, T]. likelihood: [R], the mean log-probability of the tokens that it drew, to be differentiated. head_flops:
    what their logits took, forward and back. auxiliary: what the model's own layers add to the loss.
    """

    texts: Tensor
    likelihood: Tensor
    head_flops: int
    auxiliary: Tensor | None


@method(
    "objective",
    name="didi_instruct",
    paper="Ultra-Fast Language Generation via Discrete Diffusion Divergence Instruct, arXiv:2509.25035",
    claim="up to 64 times faster: perplexity 62.2 on OpenWebText in 8 passes, and 18.4 in 128, for about 1 % of the entropy",
    cost="two passes of the student, forward and back, and two of the teacher forward, for each text that is written",
)
class DiDiInstruct:
    """Policy gradients towards texts that a discriminator cannot tell from true ones, at any share of hidden tokens.

    Haoyang Zheng et al., 2025, arXiv:2509.25035. nu: the student; theta: the teacher, which the student begins as.

        z_1: all hidden but the first `prompt` tokens;  z_tau: of these, a share 1 - tau filled in by the student, tau in (0, 1)
        x: the rest filled in from z_tau;  z_t: x with a share t hidden again, t in (0, 1)
        R = mean over hidden i of z_t of log(D_i / (1 - D_i)),   A = (R - mean of its group) / (deviation of its group + 1e-6)
        L = -mean A (log p_nu(z_tau | z_1) + log p_nu(x | z_tau)) / n
            - mean log D(z_t of text) - mean log(1 - D(z_t of the student's))

    R is a step down the KL divergence of the student's hidden texts from true ones, integrated over t. The steps through z_tau are
    the paper's intermediate-state matching, the groups (texts of one prompt) its grouped reward normalisation. D moves by the
    second line alone, the student by the first alone. n: tokens that were filled in.

    Left out: the reward-guided sampler, the regularising divergence from the teacher, the entropy bonus, and averaged weights. D is
    the student's `detector` head (`--edits detector`) on hidden states of the teacher, which stays as it is; the paper trains D's
    last blocks as well. True texts are the batch's, where the paper has the teacher's own. w(t) = 1; t and tau are uniform.

    teacher: place of a model of masked diffusion; '': the base of the run, without its edits. group: texts of one prompt. prompt:
    tokens that are given. judge: weight of the discriminator's loss.
    """

    both_ways = True
    figure = MaskedDiffusion.figure

    def __init__(
        self,
        cross_entropy: CrossEntropy,
        *,
        teacher: str = "",
        group: Annotated[int, Interval(ge=2, le=1024)] = 4,
        prompt: Count = 1,
        judge: Positive = 1.0,
    ) -> None:
        self.teachers = (teacher,)
        self.group, self.prompt, self.weight = group, prompt, judge
        self._bound = MaskedDiffusion(cross_entropy)
        self._teacher: LanguageModel | None = None

    def learn_from(self, *teachers: LanguageModel) -> None:
        """Set the teacher. Raises: UsageError where it fills in nothing."""
        (teacher,) = teachers
        if teacher.about.causal or not teacher.about.hides:
            raise UsageError("didi_instruct: the teacher fills in no hidden tokens: train one with masked_diffusion")
        self._teacher = teacher

    def count(self, batch: Batch) -> float:
        """The number of rows."""
        return float(batch.rows)

    def __call__(self, model: LanguageModel, batch: Batch, at: At) -> Loss:
        """The mean loss. Raises: UsageError without a teacher of the student's width, a detector, or rows for one group."""
        require_filler(model)
        detector, teacher = detector_of(model), self._teacher
        if teacher is None or (teacher.about.width, teacher.about.vocabulary) != (
            model.about.width,
            model.about.vocabulary,
        ):
            raise UsageError("didi_instruct: the student begins as the teacher, and has its width and vocabulary")
        if batch.rows < self.group or batch.inputs.length <= self.prompt:
            raise UsageError(f"a micro-batch of {self.group} rows or more is needed, longer than {self.prompt} tokens")
        chance = at.generator()
        filled = self.filled(model, batch.inputs.values, chance)
        rows, length = filled.texts.shape
        shares = torch.rand((rows, 1), generator=chance)
        hides = (torch.rand((rows, length), generator=chance) < shares).to(filled.texts.device)
        hides[:, : self.prompt] = False
        fakes = scores(detector, teacher, filled.texts, hides)
        truths = scores(detector, teacher, batch.inputs.values[:rows], hides)
        rewards = means_of_rows(fakes.detach(), hides)
        policy = -(self.advantages(rewards) * filled.likelihood).mean()
        judged = (F.softplus(-truths).sum() + F.softplus(fakes).sum()) / max(len(fakes), 1)
        whole = Shape(rows, length, outputs=0)
        student = 2 * model.cost(whole._replace(backward=True)).flops + filled.head_flops
        student += 2 * detector.flops(len(fakes), backward=True, inputs=False)
        asked = Charge(flops=2 * teacher.cost(whole).flops, read=2 * rows * length, calls=2)
        parts = {
            "reward": rewards.mean(),
            "told_apart": ((truths > 0).float().sum() + (fakes < 0).float().sum()).detach() / max(2 * len(fakes), 1),
            "likelihood": filled.likelihood.detach().mean(),
        }
        return Loss(
            policy + self.weight * judged, {MODEL: Charge(flops=student), TEACHER: asked}, parts, filled.auxiliary
        )

    def filled(self, model: LanguageModel, tokens: Tensor, chance: torch.Generator) -> FilledText:
        """What the student writes after the first tokens of the first rows of [B, T], `group` texts for each."""
        groups = len(tokens) // self.group
        rows, length, device = groups * self.group, tokens.shape[1], tokens.device
        texts = torch.full((rows, length), HIDDEN, device=device)
        texts[:, : self.prompt] = tokens[:groups, : self.prompt].repeat_interleave(self.group, 0)
        late = torch.rand((rows, length), generator=chance) < torch.rand((rows, 1), generator=chance)
        total, head, auxiliary = torch.zeros(rows, device=device), 0, list[Tensor]()
        for last in (False, True):
            now = (texts == HIDDEN) if last else (texts == HIDDEN) & ~late.to(device)
            reading = model.read(Inputs(texts))
            logs = reading.head.logits(reading.hidden[now]).float().log_softmax(-1)
            drawn = torch.rand((len(logs), 1), generator=chance).to(device)
            mass = logs.detach().exp().cumsum(-1)
            chosen = torch.searchsorted(mass, drawn * mass[:, -1:], right=True).clamp_max(logs.shape[1] - 1)
            total = total.index_add(0, now.nonzero()[:, 0], logs.gather(-1, chosen)[:, 0])
            texts = texts.masked_scatter(now, chosen[:, 0])
            weight = reading.head.weight
            head += (2 + (weight is None or weight.requires_grad)) * reading.head.flops(len(logs))
            more = reading.auxiliary()
            auxiliary += [] if more is None else [more]
        added = torch.stack(auxiliary).mean() if auxiliary else None
        return FilledText(texts, total / (length - self.prompt), head, added)

    def advantages(self, rewards: Tensor) -> Tensor:
        """[R]: each reward [R] against those of its own group."""
        grouped = rewards.view(-1, self.group)
        off = grouped - grouped.mean(1, keepdim=True)
        return (off / (grouped.std(1, keepdim=True, correction=0) + 1e-6)).flatten()

    def judge(self, model: LanguageModel, batch: Batch) -> Judged:
        """As `HeldoutJudge.judge`: the bound of `masked_diffusion`."""
        return self._bound.judge(model, batch)


def scores(detector: TokenDetector, teacher: LanguageModel, texts: Tensor, hides: Tensor) -> Tensor:
    """[n]: log(D / (1 - D)) at the places [R, T] that are hidden of texts [R, T], in order."""
    with torch.no_grad():
        hidden = teacher.read(Inputs(texts.masked_fill(hides, HIDDEN))).hidden[hides]
    return detector(hidden).float()


def means_of_rows(values: Tensor, places: Tensor) -> Tensor:
    """[R]: the mean of the values [n] at the places [R, T] of each row; 0 where it has none."""
    rows = places.nonzero()[:, 0]
    sums = values.new_zeros(len(places)).index_add(0, rows, values)
    return sums / places.sum(1).clamp_min(1)
