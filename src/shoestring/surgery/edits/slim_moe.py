"""Pruning of mixtures of experts: narrower experts, or fewer."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.budget.charge import Charge
from shoestring.contract.anatomy import Axis
from shoestring.contract.batch import IGNORED
from shoestring.contract.cost import Shape
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Count, Fraction, method
from shoestring.surgery.pruning import Kept, Pruning, axis_of, best, cut, kept_count, kept_shared, readers


@method(
    "surgery",
    kind="edit",
    name="slim_moe",
    paper="SlimMoE: Structured Compression of Large MoE Models via Expert Slimming and Distillation, arXiv:2506.18349",
    claim="Phi-3.5-MoE of 41.9 B parameters comes down to 7.6 B and 3.8 B with 400 B tokens, less than a tenth of the original's",
    cost="a forward and a backward pass over the calibration text",
)
class SlimMoE(Pruning):
    """Leave the hidden features of each expert that the loss hangs on the most; all experts stay, and are narrower.

    Zichong Li et al., 2025, arXiv:2506.18349.

    With L the loss on a calibration text and W [width, hidden] the output matrix of expert e, its feature j counts as

        | sum_i W_ij dL/dW_ij |,   the slope of L by a factor on the feature

    Each expert keeps features of its own, as many as the others. Groups of query heads with their key and value head count as the
    sum over their columns. The paper prunes a part, distils from the original, prunes on and distils again: a run on the run of
    another, each with this edit and a share of the budget, and with the original as teacher (docs/shrink.md).

    Different from the paper: its score is from a divergence of the likeliest eight tokens from the original's, whose slope at the
    original itself is zero. Here it is the loss on the text. `experts` drops whole ones as well, by the sum over their features;
    the paper keeps them all. Shared experts, which it has not, are cut by the same share.

    expert_hidden, heads, experts: shares that stay. multiple: the hidden features of an expert are a multiple of this.
    """

    def __init__(
        self, *, expert_hidden: Fraction = 1.0, heads: Fraction = 1.0, experts: Fraction = 1.0, multiple: Count = 8
    ) -> None:
        if min(expert_hidden, heads, experts) <= 0:
            raise ValueError("slim_moe: shares that stay are above 0 and at most 1")
        if expert_hidden == heads == experts == 1:
            raise ValueError(
                "slim_moe: nothing is to be pruned: give expert_hidden, heads or experts, the share that stays"
            )
        self.expert_hidden, self.heads, self.experts, self.multiple = expert_hidden, heads, experts, multiple

    def choose(self, model: LanguageModule, evidence: Evidence) -> tuple[Kept, Mapping[str, Tensor], Charge]:
        """As `Pruning.choose`. Tensors: 'LAYER.features' [E, hidden], the order of the features, those that stay first."""
        anatomy = model.anatomy()
        if not anatomy.axes("expert_hidden"):
            raise UsageError("slim_moe: this model has no experts (channel_mixer moe)")
        names = {axis.layer: f"{_owner(axis.slices[0].name)}.output.weight" for axis in anatomy.axes("expert_hidden")}
        attention, always, columns = list[Axis](), list[Axis](), dict[Axis, str]()
        if self.heads < 1:
            attention = anatomy.axes("key_value_head") or [axis_of(anatomy, "key_value_head", None)]
            columns |= {axis: readers(model, axis_of(anatomy, "head", axis.layer))[0] for axis in attention}
        if self.expert_hidden < 1:
            always = anatomy.axes("shared_hidden")
            columns |= {axis: readers(model, axis)[0] for axis in always}
        slopes, spent = _slopes(model, evidence, [*names.values(), *(f"{name}.weight" for name in columns.values())])
        kept, tensors = Kept(), dict[str, Tensor]()
        for layer, name in names.items():
            scores = slopes[name].abs()  # [E, hidden]
            if self.expert_hidden < 1:
                count = kept_count(scores.shape[1], self.expert_hidden, self.multiple)
                stay = [best(own, count) for own in scores]
                tensors[f"{layer}.features"] = torch.tensor([_first(own, scores.shape[1]) for own in stay])
                kept.append({"kind": "expert_hidden", "layer": layer, "indices": list(range(count))})
            if self.experts < 1:
                count = kept_count(len(scores), self.experts)
                kept.append({"kind": "expert", "layer": layer, "indices": best(scores.sum(1), count)})
        for axis in (*attention, *always):
            groups = slopes[f"{columns[axis]}.weight"].view(axis.size, -1).abs().sum(1)
            if axis.kind == "key_value_head":
                count = kept_count(axis.size, self.heads)
            else:
                count = kept_shared(anatomy, axis, self.expert_hidden, self.multiple)
            kept.append({"kind": axis.kind, "layer": axis.layer, "indices": best(groups, count)})
        return kept, tensors, spent

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The smaller model."""
        for axis in model.anatomy().axes("expert_hidden"):
            order = decision.tensors.get(f"{axis.layer}.features")
            if order is not None:
                _reorder(model.get_submodule(_owner(axis.slices[0].name)), order)
        for one in decision.values["keep"]:
            cut(model, one["kind"], one["layer"], one["indices"])
        return model


def _owner(name: str) -> str:
    """The name of the mixture, of that of its 'input.weight'."""
    return name.removesuffix(".input.weight")


def _first(stay: list[int], size: int) -> list[int]:
    """All indices, these first."""
    return [*stay, *sorted(set(range(size)) - set(stay))]


@torch.no_grad()
def _reorder(mixture: nn.Module, order: Tensor) -> None:
    """Put the features of each expert in this order [E, hidden]; the mixture computes what it did."""
    inside, out = (mixture.get_parameter(f"{part}.weight") for part in ("input", "output"))
    order = order.to(inside.device)
    both = torch.cat([order, order + order.shape[1]], 1)
    inside.copy_(inside.gather(1, both[:, :, None].expand_as(inside)))
    out.copy_(out.gather(2, order[:, None, :].expand_as(out)))


def _slopes(model: LanguageModule, evidence: Evidence, names: list[str]) -> tuple[dict[str, Tensor], Charge]:
    """(sum_i W_ij dL/dW_ij of each of these weights [.., out, in], L the sum of the loss over the text; what that took)."""
    if not evidence.text:
        raise UsageError("slim_moe looks at text to decide: none was given to it")
    weights = {name: model.get_parameter(name) for name in names}
    asked = [parameter.requires_grad for parameter in model.parameters()]
    found = {name: torch.zeros(weight.shape[:-2] + weight.shape[-1:]) for name, weight in weights.items()}
    spent, training = Charge(), model.training
    model.requires_grad_(False).eval()
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        for batch in evidence.text:
            logits = model.read(batch.inputs.to(model.device)).logits().flatten(0, -2).float()
            targets = batch.targets.to(model.device).flatten()
            loss = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
            gradients = torch.autograd.grad(loss, list(weights.values()))
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                found[name] += (weight.detach() * gradient).sum(-2).float().cpu()
            shape = Shape(batch.rows, batch.inputs.length, backward=True)
            spent += Charge(flops=model.cost(shape).flops, read=batch.targets.numel(), calls=1)
    finally:
        for parameter, was in zip(model.parameters(), asked, strict=True):
            parameter.requires_grad_(was)
        model.train(training)
        model.changed()
    return found, spent
