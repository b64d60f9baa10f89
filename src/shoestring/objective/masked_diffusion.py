"""Masked diffusion: hide a random share of the tokens, and predict them from those that are left."""

import zlib
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

from shoestring.budget.charge import Charge
from shoestring.budget.ledger import MODEL
from shoestring.contract.batch import HIDDEN, IGNORED, Batch, Inputs
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModel, Reading
from shoestring.contract.objective import At, Judged, Loss
from shoestring.errors import UsageError
from shoestring.method import Count, method
from shoestring.objective.cross_entropy import CrossEntropy


@method(
    "objective",
    name="masked_diffusion",
    paper="Diffusion Language Models are Super Data Learners, arXiv:2511.03276",
    claim="where unique data is limited, models trained so overtake those that predict the next token, by more epochs over it; the "
    "crossover comes earlier for larger models and later with more or better data",
    cost="as next_token, with the output layer at the hidden tokens alone, half of all on average; evaluation takes `draws` passes",
)
class MaskedDiffusion:
    """The mean negative log-likelihood of hidden tokens, each row weighed by one over the share that is hidden.

    Jinjie Ni et al., 2025, arXiv:2511.03276; the objective is that of Sahoo et al., 2024, arXiv:2406.07524, and Nie et al., 2025,
    arXiv:2502.09992.

        t_b in (least, 1], evenly;  each token of row b is hidden with probability t_b
        L = -1/N sum_b 1/t_b sum_{i hidden} log p(x_i | the tokens that are shown),   N = tokens that can be hidden

    Its mean over t and over what is hidden is an upper bound of -log p(x) / N. The model sees both ways. It predicts a token at the
    token's own place, and reads a vector of its own there (`HIDDEN`), which it cannot predict.

    The batch is that of training on next tokens. The first token of a row is given, as are those that are no targets there (what
    was asked in a chat, the first token of a packed document). So N is that of next_token less one a row: the target after the last
    token that is read is not in the row.

    On held-out text it says the bound in nats a token. For each row and k < draws, exactly l of its n tokens are hidden,
    l = 1 + floor(n ((u + k) / draws mod 1)), and each counts n / l: the same bound with less noise (Nie et al., eq. 6). u and the
    places are drawn of the row's own tokens, so that a text is judged the same in any batch.

    t is drawn in strata over the rows of a micro-batch, as Sahoo et al. do it.

    least: share of tokens that is hidden at least, on average.
    draws: passes over each held-out row.
    """

    both_ways = True
    figure = "an upper bound of the negative log-likelihood, from random masks"

    def __init__(
        self,
        cross_entropy: CrossEntropy,
        *,
        least: Annotated[float, Interval(gt=0, lt=1)] = 1e-3,
        draws: Count = 4,
    ) -> None:
        self.least, self.draws = least, draws

    def count(self, batch: Batch) -> float:
        """N, or the sum of the weights of the tokens that can be hidden."""
        return float(weights_of(batch).double().sum())

    def __call__(self, model: LanguageModel, batch: Batch, at: At) -> Loss:
        """The mean loss. Raises: UsageError for a model that is causal, or reads no hidden tokens."""
        require_filler(model)
        weights = weights_of(batch)
        shares, hidden = self.drawn(weights > 0, at)
        reading = model.read(shown(batch, hidden))
        losses = losses_at(reading, hidden, batch.inputs.values)
        each = (weights / shares[:, None])[hidden]
        mean = (losses * each).sum() / weights.sum().clamp_min(1e-12)
        parts = {"hidden": hidden.float().mean()}
        spent = {MODEL: Charge(flops=pass_flops(model, reading, batch, len(losses)))}
        return Loss(mean, spent, parts, reading.auxiliary())

    def drawn(self, can: Tensor, at: At) -> tuple[Tensor, Tensor]:
        """(t [B], bool [B, T] what is hidden) of a micro-batch. can: bool [B, T], what may be."""
        generator, rows = at.generator(), len(can)
        strata = (torch.rand((), generator=generator) + torch.arange(rows) / rows) % 1
        shares = self.least + (1 - self.least) * strata[torch.randperm(rows, generator=generator)]
        chosen = torch.rand(can.shape, generator=generator) < shares[:, None]
        return shares.to(can.device), chosen.to(can.device) & can

    @torch.no_grad()
    def judge(self, model: LanguageModel, batch: Batch) -> Judged:
        """As `HeldoutJudge.judge`. Raises: UsageError as a call."""
        require_filler(model)
        can = weights_of(batch) > 0
        nats = torch.zeros(can.shape, dtype=torch.float64, device=can.device)
        starts, orders = _own_chances(batch.inputs.values, can, self.draws)
        counts = can.sum(1)
        flops = 0
        for number in range(self.draws):
            few = 1 + ((starts + number / self.draws) % 1 * counts).long().clamp_max(counts - 1).clamp_min(0)
            hidden = can & (orders[number] < few[:, None])
            reading = model.read(shown(batch, hidden))
            losses = losses_at(reading, hidden, batch.inputs.values).double()
            nats[hidden] += losses * (counts / few / self.draws)[:, None].expand_as(hidden)[hidden]
            flops += reading.cost.flops + reading.head.flops(len(losses))
        tokens = batch.inputs.values.where(can, IGNORED)
        return Judged(nats, tokens, Charge(flops=flops, read=self.draws * can.numel()))


def require_filler(model: LanguageModel) -> None:
    """Raises: UsageError for a model that is causal, or reads no hidden tokens."""
    if model.about.causal or not model.about.hides:
        raise UsageError(
            "objective = masked_diffusion needs a model that sees both ways and reads hidden tokens: give --model.causal false "
            "--model.hides true, or, on a base, --edits hidden_tokens"
        )


def weights_of(batch: Batch) -> Tensor:
    """float32 [B, T]: what each token that is read counts; 0 for one that is given."""
    inputs = batch.inputs
    found = torch.zeros(inputs.values.shape, device=inputs.values.device)
    own = (batch.targets[:, :-1] != IGNORED).float()
    found[:, 1:] = own if batch.weights is None else own * batch.weights[:, :-1]
    if inputs.documents is not None:
        found[:, 1:] *= inputs.documents[:, 1:] == inputs.documents[:, :-1]
    if inputs.lengths is not None:
        found *= torch.arange(inputs.length, device=found.device) < inputs.lengths[:, None]
    return found


def shown(batch: Batch, hidden: Tensor) -> Inputs:
    """The inputs, without the tokens that are hidden."""
    return batch.inputs._replace(values=batch.inputs.values.masked_fill(hidden, HIDDEN))


def losses_at(reading: Reading, hidden: Tensor, tokens: Tensor) -> Tensor:
    """float32 [n]: the loss at each of the hidden places, in order."""
    logits = reading.head.logits(reading.hidden[hidden]).float()
    return F.cross_entropy(logits, tokens[hidden], reduction="none")


def pass_flops(model: LanguageModel, reading: Reading, batch: Batch, places: int) -> int:
    """Operations of a pass forward and back, with the output layer at so many places."""
    weight = reading.head.weight
    products = 2 + (weight is None or weight.requires_grad)
    body = model.cost(Shape(batch.rows, batch.inputs.length, outputs=0, backward=True)).flops
    return body + products * reading.head.flops(places)


def _own_chances(values: Tensor, can: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """(u [B], the place of each token in a random order of those that can be hidden [draws, B, T]): of each row's tokens alone."""
    starts, orders = [], []
    for row, own in zip(values.cpu(), can.cpu(), strict=True):
        generator = torch.Generator().manual_seed(zlib.crc32(row.numpy().tobytes()))
        starts.append(torch.rand((), generator=generator, dtype=torch.float64))
        scores = torch.rand((draws, len(row)), generator=generator).masked_fill(~own, 2.0)
        orders.append(scores.argsort(1).argsort(1))
    return torch.stack(starts).to(values.device), torch.stack(orders, 1).to(values.device)
