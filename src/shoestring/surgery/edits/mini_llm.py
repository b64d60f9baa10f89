"""Pruning by magnitude, activation and gradient, with gradients that take forward passes alone."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.budget.charge import Charge
from shoestring.contract.batch import IGNORED
from shoestring.contract.edit import Evidence
from shoestring.contract.model import LanguageModule
from shoestring.method import Count, Epsilon, Fraction, method
from shoestring.surgery.observe import observe
from shoestring.surgery.pruning import axis_of, readers
from shoestring.surgery.scored_pruning import ScoredPruning, Scores


@method(
    "surgery",
    kind="edit",
    name="mini_llm",
    paper="MINI-LLM: Memory-Efficient Structured Pruning for Large Language Models, arXiv:2407.11681",
    claim="better than structured pruning without gradients on LLaMA, BLOOM and OPT, in as little memory",
    cost="one forward pass over the calibration text, and two for each direction that a gradient is estimated along",
)
class MiniLLMPruning(ScoredPruning):
    """Leave the hidden features and heads whose outgoing weights, what they read, and the loss's slope along them are large.

    With W [out, in] an output matrix, X what it reads over the text, and G the slope of the loss by W,

        s_ij = |W_ij| ||X_j||_2 |G_ij|,     an index counts as the sum of s_ij over all i and its own columns j

    G is estimated without a backward pass: with z_k drawn from a normal distribution in all output matrices at once,

        G = 1/K sum_k (L(W + eps z_k) - L(W - eps z_k)) / (2 eps) z_k

    The paper cuts in several rounds with tuning in between; here all is chosen at once, and healing is a run's.

    hidden, heads: shares that stay.
    directions: K.
    epsilon: eps.
    multiple: sizes of hidden are multiples of this.
    """

    def __init__(
        self,
        *,
        hidden: Fraction = 1.0,
        heads: Fraction = 1.0,
        directions: Count = 8,
        epsilon: Epsilon = 1e-3,
        multiple: Count = 8,
    ) -> None:
        super().__init__(hidden=hidden, heads=heads, multiple=multiple)
        self.directions, self.epsilon = directions, epsilon

    def scores(self, model: LanguageModule, evidence: Evidence, kinds: Sequence[str]) -> tuple[Scores, Charge]:
        """As `ScoredPruning.scores`."""
        anatomy = model.anatomy()
        matrices: dict[tuple[str, int | None], str] = {}
        for kind in kinds:
            for axis in anatomy.axes(kind):
                columns = axis_of(anatomy, "head", axis.layer) if kind == "key_value_head" else axis
                (matrices[kind, axis.layer],) = readers(model, columns)
        names = list(matrices.values())
        squares = {name: torch.zeros(model.get_parameter(f"{name}.weight").shape[1]) for name in names}

        def look(name: str, inputs: Tensor) -> None:
            squares[name] += inputs.float().square().flatten(0, -2).sum(0).cpu()

        spent = observe(model, evidence.text, names, look)
        slopes, took = self.slopes(model, evidence, names)
        found = {}
        for (kind, layer), name in matrices.items():
            weight = model.get_parameter(f"{name}.weight").detach().float().cpu()
            each = (weight.abs() * slopes[name].abs()).sum(0) * squares[name].sqrt()
            found[kind, layer] = each.view(axis_of(anatomy, kind, layer).size, -1).sum(-1)
        return found, spent + took

    @torch.no_grad()
    def slopes(
        self, model: LanguageModule, evidence: Evidence, names: Sequence[str]
    ) -> tuple[dict[str, Tensor], Charge]:
        """(float32 [out, in] by name: the estimated slope of the loss by each matrix, what estimating took)."""
        weights = {name: model.get_parameter(f"{name}.weight") for name in names}
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        found = {name: torch.zeros(weight.shape) for name, weight in weights.items()}
        spent = Charge()
        for direction in range(self.directions):
            drawn = torch.Generator().manual_seed(evidence.seed * 8191 + direction)
            moves = {name: torch.randn(weight.shape, generator=drawn) for name, weight in weights.items()}
            ends = []
            for side in (1, -1):
                for name, weight in weights.items():
                    weight.copy_(before[name] + side * self.epsilon * moves[name].to(weight))
                loss, took = _loss(model, evidence)
                ends.append(loss)
                spent += took
            for name in names:
                found[name] += (ends[0] - ends[1]) / (2 * self.epsilon * self.directions) * moves[name]
        for name, weight in weights.items():
            weight.copy_(before[name])
        return found, spent


def _loss(model: LanguageModule, evidence: Evidence) -> tuple[float, Charge]:
    """(the mean loss over the text, nats a target; what that took)."""
    total, count, spent = 0.0, 0, Charge()
    for batch in evidence.text:
        reading = model.read(batch.inputs.to(model.device))
        logits, targets = reading.logits().flatten(0, -2).float(), batch.targets.to(model.device).flatten()
        total += float(F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"))
        count += batch.tokens
        flops = reading.cost.flops + reading.head.flops(len(targets))
        spent += Charge(flops=flops, read=len(targets), calls=1)
    return total / max(count, 1), spent
