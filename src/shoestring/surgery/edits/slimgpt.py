"""Pruning of hidden features and heads layer by layer, with the weights that stay making up for those that go."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.contract.edit import Evidence
from shoestring.contract.model import LanguageModule
from shoestring.method import Count, Epsilon, Fraction, method
from shoestring.surgery.observe import Walk, watching
from shoestring.surgery.pruning import Kept, Pruning, Shares, axis_of, kept_count, readers


@method(
    "surgery",
    kind="edit",
    name="slimgpt",
    paper="SlimGPT: Layer-wise Structured Pruning for Large Language Models, arXiv:2412.18110",
    claim="better than other structured pruning on LLaMA models, in about an hour",
    cost="two passes over the calibration text; of each layer the inverse of a Hessian of its hidden features and of its heads",
)
class SlimGPT(Pruning):
    """Leave out the columns of each output matrix that cost the least, after the other columns have made up for them.

    With W [out, in] an output matrix, X what it reads and H = X X^T / n + damping, leaving out the columns of group g costs

        E_g = tr( W_g ([H^-1]_gg)^-1 W_g^T ),    and then    W <- W - W_g ([H^-1]_gg)^-1 [H^-1]_g:

    so the groups of the least E_g go, a few at a time, with H^-1 updated after each (Optimal Brain Surgeon). A group is a head
    (with grouped queries: those that share keys and values), or a single hidden feature. The rows that fed the columns go too.
    Layers are pruned in order, each by what the pruned ones before it make of the text.

    What goes grows with depth, as the logarithm of the layer's number, from `first` of the mean share to what makes up the mean
    (the paper's incremental pruning ratio). Hidden features go `step` at a time; the paper lets that number shrink as it goes on.

    hidden, heads: shares that stay, on average over the layers.
    first: what goes of the first layer, in proportion to the average; 1: the same of all.
    step: hidden features that go between two updates.
    damping: added to the diagonal of H, in proportion to its mean.
    multiple: sizes of hidden are multiples of this.
    """

    def __init__(
        self,
        *,
        hidden: Fraction = 1.0,
        heads: Fraction = 1.0,
        first: Fraction = 1.0,
        step: Count = 16,
        damping: Epsilon = 0.01,
        multiple: Count = 8,
    ) -> None:
        self.shares = Shares(1.0, hidden, heads)
        self.first, self.step, self.damping, self.multiple = first, step, damping, multiple

    def choose(self, model: LanguageModule, evidence: Evidence) -> tuple[Kept, Mapping[str, Tensor], Charge]:
        """As `Pruning.choose`. The layers are changed on the way and put back."""
        kept: Kept = []
        tensors: dict[str, Tensor] = {}
        before = {name: value.clone() for name, value in model.state_dict().items()}
        asked = [("key_value_head", self.shares.heads, 1), ("hidden", self.shares.hidden, self.multiple)]
        walk, anatomy = Walk(model, evidence.text), model.anatomy()
        for layer, _ in enumerate(walk):
            for kind, share, multiple in asked:
                if share == 1:
                    continue
                axis = axis_of(anatomy, kind, layer)
                columns = axis_of(anatomy, "head", layer) if kind == "key_value_head" else axis
                (name,) = readers(model, columns)
                count = kept_count(axis.size, 1 - (1 - share) * self._gone(layer, len(anatomy.layers)), multiple)
                weight = model.get_parameter(f"{name}.weight")
                changed, stay = self._pruned(weight, self._hessian(model, walk, name), axis.size, count)
                kept.append({"kind": kind, "layer": layer, "indices": stay})
                places = _columns(stay, weight.shape[1] // axis.size)
                tensors[f"{name}.weight"] = changed[:, places].to(weight.dtype)
                with torch.no_grad():  # columns of zeros: the layers to come read what the smaller layer makes
                    weight.copy_(changed)
        model.load_state_dict(before)
        return kept, tensors, walk.spent

    def _gone(self, layer: int, layers: int) -> float:
        """What goes of a layer, in proportion to the average."""
        if layers == 1 or self.first == 1:
            return 1.0
        rise = [math.log(1 + place) / math.log(layers) for place in range(layers)]
        mean = sum(rise) / layers
        return self.first + (1 - self.first) * rise[layer] / mean

    def _hessian(self, model: LanguageModule, walk: Walk, name: str) -> Tensor:
        """float64 [in, in], of what a matrix reads, with damping."""
        size = model.get_parameter(f"{name}.weight").shape[1]
        total, count = torch.zeros(size, size, dtype=torch.float64), 0

        def look(_: str, inputs: Tensor) -> None:
            nonlocal count
            x = inputs.flatten(0, -2).cpu().double()
            total.addmm_(x.T, x)
            count += len(x)

        with watching(model, [name], look):
            walk.run()
        total /= max(count, 1)
        return total + torch.eye(size, dtype=torch.float64) * (self.damping * float(total.diagonal().mean()) + 1e-12)

    def _pruned(self, weight: Tensor, hessian: Tensor, groups: int, count: int) -> tuple[Tensor, list[int]]:
        """(float64 [out, in], the weight with columns of zeros where groups went; the groups that stay)."""
        changed, inverse = weight.detach().cpu().double().clone(), torch.linalg.inv(hessian)
        size, alive = weight.shape[1] // groups, list(range(groups))
        step = self.step if size == 1 else 1
        while len(alive) > count:
            errors = _errors(changed, inverse, alive, size)
            worst = errors.argsort(stable=True)[: min(step, len(alive) - count)].tolist()
            gone = _columns([alive[place] for place in worst], size)
            solved = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])
            changed -= changed[:, gone] @ solved
            changed[:, gone] = 0
            inverse = inverse - inverse[:, gone] @ solved
            alive = [group for place, group in enumerate(alive) if place not in set(worst)]
        return changed, alive


def _columns(groups: list[int], size: int) -> Tensor:
    """[len(groups) size] int64: the columns of these groups."""
    return (torch.tensor(groups, dtype=torch.int64)[:, None] * size + torch.arange(size)).flatten()


def _errors(weight: Tensor, inverse: Tensor, groups: list[int], size: int) -> Tensor:
    """[len(groups)]: what leaving out each group costs."""
    if size == 1:
        columns = torch.tensor(groups)
        return weight[:, columns].square().sum(0) / inverse.diagonal()[columns]
    found = []
    for group in groups:
        own = _columns([group], size)
        part = weight[:, own]
        found.append((torch.linalg.solve(inverse[own][:, own], part.T) * part.T).sum())
    return torch.stack(found)
