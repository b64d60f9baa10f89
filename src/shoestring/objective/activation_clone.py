"""Learning to compute in each matrix what the teacher's computes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shoestring.contract.anatomy import Anatomy
from shoestring.contract.batch import Batch
from shoestring.errors import UsageError
from shoestring.method import NonNegative, method
from shoestring.objective.cross_entropy import CrossEntropy
from shoestring.objective.layer_distillation import LayerDistillation, Match, weighted_mean, written_by


@method(
    "objective",
    name="activation_clone",
    paper="A Token is Worth over 1,000 Tokens: Efficient Knowledge Distillation through Low-Rank Clone, arXiv:2505.12781",
    claim="with low-rank clones, 20 B tokens match models that were trained on trillions; feed-forward signals matter most",
    cost="a forward pass of the teacher a token",
)
class ActivationClone(LayerDistillation):
    """The distance of what the model's matrices write from what the teacher's do, for a model that is narrower and nothing else.

        D = sum over layers of the mean over m in {query, key, value, hidden features} of |y_m - y_m*|^2 / |y_m|,
        L = weight D + logits KL + text CE

    y_m, y_m*: what matrix m writes, in the model and in the teacher; |y_m| its features. Heads and hidden features are as many as
    the teacher's, as those of the edit `low_rank_clone` are; it is the objective that the paper trains that with. The paper
    compares the outputs of attention and of the feed-forward layer too, through its projections; that is left out here.

    teacher: the place of a model; '': the base of the run.
    weight, logits, text: of the three losses.
    """

    def __init__(
        self,
        cross_entropy: CrossEntropy,
        *,
        teacher: str = "",
        weight: NonNegative = 0.2,
        logits: NonNegative = 1.0,
        text: NonNegative = 1.0,
    ) -> None:
        super().__init__(teacher, weight=weight, logits=logits, text=text)

    def matches(self, own: Anatomy, theirs: Anatomy) -> Sequence[Match]:
        """As `LayerDistillation.matches`."""
        pairs = dict[Match, None]()
        kinds = ("head", "key_value_head", "hidden")
        ours, known = ([one for kind in kinds for one in anatomy.axes(kind)] for anatomy in (own, theirs))
        if not ours or len(own.layers) != len(theirs.layers):
            raise UsageError("activation_clone: the model has the teacher's layers, and tells which weights they have")
        if [axis.size for axis in ours] != [axis.size for axis in known]:
            raise UsageError("activation_clone: the model has as many heads and hidden features as the teacher")
        left, right = written_by(ours), written_by(known)
        for layer in left:
            for mine, one in zip(left[layer], right[layer], strict=True):
                pairs[Match(mine.name, one.name, layer)] = None
        return list(pairs)

    def distance(
        self, matches: Sequence[Match], own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, int, int]:
        """As `LayerDistillation.distance`."""
        layers: dict[int, list[Tensor]] = {}
        for one in matches:
            away = (own[one.own].float() - theirs[one.theirs].float()).square().mean(-1)
            layers.setdefault(one.group, []).append(weighted_mean(away, batch))
        return torch.stack([torch.stack(each).mean() for each in layers.values()]).sum(), 0, 0
