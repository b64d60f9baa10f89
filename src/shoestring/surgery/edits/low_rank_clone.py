"""A narrower model whose matrices are learnt projections of a larger one's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.anatomy import Axis
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Count, Fraction, method
from shoestring.surgery.edits.compactifai import plain_linear
from shoestring.surgery.pruning import axis_of, kept_count, width_multiple
from shoestring.surgery.resize import Cut, resize


class ProjectedLinear(nn.Module):
    """y = W' x + b, with W' = W P where the width is read, or P^T W where it is written.

    weight: W, of the larger model; it is not trained. projection: P [large width, width], which is.
    reads: whether the width is read.
    """

    def __init__(self, weight: Tensor, projection: Tensor, bias: nn.Parameter | None, reads: bool) -> None:
        super().__init__()
        self.large = nn.Parameter(weight, requires_grad=False)
        self.projection, self.bias, self.reads = nn.Parameter(projection), bias, reads
        out, inside = weight.shape
        width = projection.shape[1]
        self.out_features, self.in_features = (out, width) if reads else (width, inside)

    def weight_of(self) -> Tensor:
        """[out, in]: W'."""
        return self.large @ self.projection if self.reads else self.projection.T @ self.large

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return F.linear(x, self.weight_of(), self.bias)

    def flops(self, tokens: int, backward: bool = False, inputs: bool = True) -> int:
        """As `contract.cost.linear`; making W' is among it."""
        trained = backward and self.projection.requires_grad
        made = 2 * self.large.numel() * self.projection.shape[1] * (1 + trained)
        return made + 2 * tokens * self.in_features * self.out_features * (1 + trained + (backward and inputs))


@method(
    "surgery",
    kind="edit",
    name="low_rank_clone",
    paper="A Token is Worth over 1,000 Tokens: Efficient Knowledge Distillation through Low-Rank Clone, arXiv:2505.12781",
    claim="with 20 B tokens, matches or surpasses models that were trained on trillions",
    cost="one forward pass over the calibration text; while training, a product of each large matrix with its projection a pass",
)
class LowRankClone:
    """Make the residual stream narrower, and train the projections that turn the large matrices into narrow ones.

        W'_m = W_m P_m  (query, key, value, gate, up),     W'_m = P_m^T W_m  (output, down),     P_m [large width, width]

    The large matrices stay as they are; each has a projection of its own. All begin as the directions in which the residual stream
    is largest on the calibration text: P = the first eigenvectors of E[n n^T], with n the stream, normed. Heads and hidden features
    are as many as before, so that the objective `activation_clone` can compare what matrices write. Folded, they are narrow.
    The paper projects the embedding too, as it trains; here it is projected once, and trained itself. Gains of norms go into the
    matrices that read them. Norms must be RMS norms, as a projection keeps no mean.

    width: share of the width that stays.
    multiple: the width is a multiple of this.
    """

    needs: frozenset[str] = frozenset({"text"})

    def __init__(self, *, width: Fraction = 0.75, multiple: Count = 8) -> None:
        if width <= 0:
            raise ValueError("low_rank_clone: width is a share above 0")
        self.width, self.multiple = width, multiple

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The projection to begin with. Raises: UsageError without text, or where the model does not fit."""
        axis = axis_of(model.anatomy(), "width", None)
        _require(model, axis)
        heads = model.anatomy().axes("head")
        count = kept_count(axis.size, self.width, width_multiple(heads[0].size if heads else 1, self.multiple))
        if count == axis.size:
            return Decision({}, {"projection": torch.eye(axis.size)})
        moments, spent = _moments(model, evidence, axis.size)
        vectors = torch.linalg.eigh(moments).eigenvectors.flip(1)[:, :count]
        signs = vectors.gather(0, vectors.abs().argmax(0)[None])[0].sign()
        return Decision({}, {"projection": (vectors * signs).float().contiguous()}, spent)

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The narrower model, with projected matrices."""
        axis, projection = axis_of(model.anatomy(), "width", None), decision.tensors["projection"]
        large, width = projection.shape
        if large != axis.size:
            raise UsageError(f"what was decided is for a width of {large}, and this model has {axis.size}")
        whole = {one.name: model.get_parameter(one.name).detach().clone() for one in axis.slices}
        biases = {name.removesuffix("weight") + "bias" for name in whole}
        resize(model, Cut(axis, range(width)))
        # a norm divides by the mean square: of as much in fewer features, it makes smaller ones
        grown = (large / width) ** 0.5
        embedding = model.anatomy().embedding
        for one in axis.slices:
            old, here = whole[one.name], projection.to(whole[one.name])
            name = one.name.rpartition(".")[0]
            module: Any = model.get_submodule(name)
            if isinstance(module, nn.Linear) and one.name.endswith(".weight"):
                reads = one.dim == 1
                gain = self._gain(model, name, whole)
                taken = old * gain if reads and gain is not None else old
                if module.weight is model.get_submodule(embedding).weight or name == model.anatomy().head:
                    module.weight.data.copy_(taken @ here)
                    continue
                bias = module.bias if reads or module.bias is None else nn.Parameter(whole[f"{name}.bias"] @ here)
                model.set_submodule(name, ProjectedLinear(taken, here.clone(), bias, reads))
            elif name == embedding:
                module.weight.data.copy_(old @ here)
            elif old.ndim == 1 and one.name not in biases:
                folded = f"{name.removesuffix('norm')}mixer" if name.endswith("_norm") else (model.anatomy().head or "")
                gain = torch.ones_like(old) if _there(model, folded) else old
                model.get_parameter(one.name).data.copy_((here.square() * gain[:, None]).sum(0) * grown)
        model.changed()
        return model

    def _gain(self, model: LanguageModule, name: str, whole: dict[str, Tensor]) -> Tensor | None:
        """[width]: of the norm whose output this matrix reads; None where there is none."""
        if name == model.anatomy().head:
            return whole.get("norm.weight")
        return whole.get(f"{name.rpartition('.')[0].removesuffix('mixer')}norm.weight")

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The narrow model of plain matrices."""
        for name, module in list(model.named_modules()):
            if isinstance(module, ProjectedLinear):
                model.set_submodule(name, plain_linear(module.weight_of().detach(), module.bias))
        model.changed()
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        large, width = decision.tensors["projection"].shape
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        return f"low_rank_clone: width {large} is {width}, by projections: {trained:,} parameters are trained"


def _there(model: nn.Module, name: str) -> bool:
    return bool(name) and name in dict(model.named_modules())


@torch.no_grad()
def _require(model: LanguageModule, axis: Axis) -> None:
    """Raises: UsageError for norms that take a mean away."""
    for one in axis.slices:
        norm = model.get_submodule(one.name.rpartition(".")[0])
        if isinstance(norm, nn.Linear | nn.Embedding):
            continue
        x = torch.linspace(-1, 2, axis.size, device=model.device)[None].to(model.get_parameter(one.name).dtype)
        if torch.allclose(norm(x + 10), norm(x), atol=0.1):
            raise UsageError("low_rank_clone needs RMS norms, and this model has layer norms: prune its width instead")


@torch.no_grad()
def _moments(model: LanguageModule, evidence: Evidence, width: int) -> tuple[Tensor, Charge]:
    """(float64 [width, width]: E[n n^T] of the normed streams, what measuring took)."""
    if not evidence.text:
        raise UsageError("low_rank_clone looks at text to decide: none was given to it")
    anatomy, total, spent = model.anatomy(), torch.zeros(width, width, dtype=torch.float64), NOTHING
    names: Sequence[str] = (anatomy.embedding, *anatomy.layers)
    for batch in evidence.text:
        reading = model.read(batch.inputs.to(model.device), tap=names)
        for name in names:
            x = reading.tapped[name].flatten(0, -2).cpu().double()
            normed = x / x.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
            total.addmm_(normed.T, normed)
        products = 2 * len(names) * batch.targets.numel() * width**2
        spent += Charge(flops=reading.cost.flops + products, read=batch.targets.numel(), calls=1)
    return total, spent
