"""Learning from the hidden states of a teacher's layers."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from shoestring.contract.anatomy import Anatomy
from shoestring.contract.batch import Batch
from shoestring.errors import UsageError
from shoestring.method import NonNegative, method
from shoestring.objective.cross_entropy import CrossEntropy
from shoestring.objective.layer_distillation import LayerDistillation, Match, matched_layers, weighted_mean
from shoestring.objective.token_distillation import weights_of

Layers = Literal["uniform", "last", "embedding_and_last"]

RIDGE = 1e-4
"""What keeps the map between widths from leaning on directions that hardly occur, as a share of their mean size."""


@method(
    "objective",
    name="hidden_states",
    paper="A Comparative Analysis of Task-Agnostic Distillation Methods for Compressing Transformer Language Models, "
    "arXiv:2310.08797",
    claim="better than learning from the output distribution, and behind attention relations, for encoders of several sizes",
    cost="a forward pass of the teacher a token; where widths differ, a least-squares map for each layer and batch",
)
class HiddenStates(LayerDistillation):
    """The distance of the model's hidden states from the teacher's, at matched layers.

        D = mean over layers and places of |h_s M - h_t|^2 / width_t,   L = weight D + logits KL + text CE

    h_s, h_t: the outputs of a layer and of the teacher's that it is matched with. M is the identity where the widths are the same.
    Else it is the map that fits best, M = argmin |H_s M - H_t|^2 over the batch, held fixed for the gradient; the paper trains M
    with the model. At its best the gradient by h_s is the same.

    teacher: the place of a model; '': the base of the run.
    layers: which are matched: 'uniform', all of the model's, evenly with the teacher's; 'last', the last two; or
        'embedding_and_last', those and the embeddings.
    weight, logits, text: of the three losses.
    """

    def __init__(
        self,
        cross_entropy: CrossEntropy,
        *,
        teacher: str = "",
        layers: Layers = "uniform",
        weight: NonNegative = 1.0,
        logits: NonNegative = 1.0,
        text: NonNegative = 0.0,
    ) -> None:
        super().__init__(teacher, weight=weight, logits=logits, text=text)
        self.layers = layers

    def matches(self, own: Anatomy, theirs: Anatomy) -> Sequence[Match]:
        """As `LayerDistillation.matches`."""
        if self.layers == "uniform":
            numbers = matched_layers(len(own.layers), len(theirs.layers))
            return [Match(name, theirs.layers[n]) for name, n in zip(own.layers, numbers, strict=True)]
        last = [Match(own.layers[-1], theirs.layers[-1])]
        return last if self.layers == "last" else [Match(own.embedding, theirs.embedding), *last]

    def distance(
        self, matches: Sequence[Match], own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, int, int]:
        """As `LayerDistillation.distance`."""
        total, flops = torch.zeros((), device=batch.targets.device), 0
        for one in matches:
            ours, known = own[one.own].float().flatten(0, -2), theirs[one.theirs].float().flatten(0, -2)
            if ours.shape != known.shape:
                ours, took = _mapped(ours, known, weights_of(batch))
                flops += took
            total = total + weighted_mean((ours - known).square().mean(-1), batch)
        return total / len(matches), flops, 0


def _mapped(ours: Tensor, known: Tensor, weights: Tensor) -> tuple[Tensor, int]:
    """([N, width_t], the states [N, width_s] by the map that fits best; operations). Raises: UsageError for too few places."""
    places, own, theirs = len(ours), ours.shape[1], known.shape[1]
    if int((weights > 0).sum()) < 2 * own:
        raise UsageError(
            f"hidden_states between widths {own} and {theirs} needs at least {2 * own} places at once to fit a map: "
            "raise train.micro_batch or model.context"
        )
    with torch.no_grad():
        weighted = ours * weights[:, None]
        square = weighted.T @ ours
        square.diagonal().add_(RIDGE * square.diagonal().mean())
        fitted = torch.linalg.solve(square, weighted.T @ known)
    solved = 2 * own**3 // 3 + 2 * own * own * theirs
    return ours @ fitted, 2 * places * own * (own + 3 * theirs) + solved
