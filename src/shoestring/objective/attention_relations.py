"""Learning from how a teacher's queries, keys and values relate to each other."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shoestring.contract.anatomy import Anatomy
from shoestring.contract.batch import Batch
from shoestring.errors import UsageError
from shoestring.method import Count, Fraction, NonNegative, method
from shoestring.objective.cross_entropy import CrossEntropy
from shoestring.objective.layer_distillation import LayerDistillation, Match, Rows, weighted_mean, written_by


@method(
    "objective",
    name="attention_relations",
    paper="A Comparative Analysis of Task-Agnostic Distillation Methods for Compressing Transformer Language Models, "
    "arXiv:2310.08797",
    claim="the best of output, hidden-state and attention transfer on average, for encoders of several sizes",
    cost="a forward pass of the teacher a token, and products quadratic in the length for one layer of each model",
)
class AttentionRelations(LayerDistillation):
    """The divergence of the relations of the model's last layer from those of one layer of the teacher (MiniLMv2).

        R_A = softmax(A A^T / sqrt(d)),   A [T, d] one of `heads` equal parts of the queries, keys or values of all heads
        D = mean over A, parts and places of KL(R_A of the teacher || R_A of the model),   L = weight D + logits KL + text CE

    As parts are not heads, the two models need not have as many heads, nor as wide ones. The paper's models see all of a text;
    here a place relates to itself and those before it, as it does in the attention of these models. Queries and keys are taken
    before their norm and rotation.

    teacher: the place of a model; '': the base of the run.
    heads: equal parts of queries, keys and values, each.
    depth: of the teacher's layer, as a share: 1 is the last.
    weight, logits, text: of the three losses.
    """

    def __init__(
        self,
        cross_entropy: CrossEntropy,
        *,
        teacher: str = "",
        heads: Count = 4,
        depth: Fraction = 1.0,
        weight: NonNegative = 1.0,
        logits: NonNegative = 0.0,
        text: NonNegative = 1.0,
    ) -> None:
        super().__init__(teacher, weight=weight, logits=logits, text=text)
        self.heads, self.depth = heads, depth
        self._rows: tuple[list[Rows], list[Rows]] = ([], [])

    def matches(self, own: Anatomy, theirs: Anatomy) -> Sequence[Match]:
        """As `LayerDistillation.matches`."""
        layer = max(1, math.ceil(self.depth * len(theirs.layers))) - 1
        self._rows = _relating(own, len(own.layers) - 1), _relating(theirs, layer)
        for side in self._rows:
            for rows in side:
                if (rows.stop - rows.start) % self.heads:
                    raise UsageError(
                        f"attention_relations: {rows.stop - rows.start} features of {rows.name} do not make {self.heads} "
                        "equal parts: give other heads"
                    )
        return [Match(ours.name, known.name) for ours, known in zip(*self._rows, strict=True)]

    def distance(
        self, matches: Sequence[Match], own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, int, int]:
        """As `LayerDistillation.distance`."""
        total = torch.zeros((), device=batch.targets.device)
        places = batch.rows * batch.inputs.length**2
        flops = asked = 0
        for ours, known in zip(*self._rows, strict=True):
            student = self._relations(ours.of(own))
            with torch.no_grad():
                teacher = self._relations(known.of(theirs))
            share = teacher.exp()
            each = torch.where(share > 0, share * (teacher - student), 0.0).sum(-1).mean(1)
            total = total + weighted_mean(each, batch)
            flops += 3 * 2 * places * (ours.stop - ours.start)
            asked += 2 * places * (known.stop - known.start)
        return total / len(self._rows[0]), flops, asked

    def _relations(self, features: Tensor) -> Tensor:
        """[B, heads, T, T]: the logarithms of the relations of features [B, T, heads d]."""
        parts = features.float().unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = parts @ parts.mT / math.sqrt(parts.shape[-1])
        unseen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return scores.masked_fill(unseen, -1e9).log_softmax(-1)


def _relating(anatomy: Anatomy, layer: int) -> list[Rows]:
    """What makes queries, keys and values of a layer, in this order. Raises: UsageError where the model does not tell."""
    found = written_by([*anatomy.axes("head"), *anatomy.axes("key_value_head")]).get(layer, [])
    if len(found) != 3:
        raise UsageError(
            "attention_relations: this model does not tell which of its weights make queries, keys and values; native models, "
            "and those with a bridge, do"
        )
    return found
