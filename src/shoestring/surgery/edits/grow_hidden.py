"""Wider feed-forward layers, in a model that computes what it did."""

import torch

from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Count, Positive, method
from shoestring.surgery.pruning import axis_of
from shoestring.surgery.resize import Cut, resize


@method(
    "surgery",
    kind="edit",
    name="grow_hidden",
    paper="Net2Net: Accelerating Learning via Knowledge Transfer, arXiv:1511.05641",
    claim="a wider network that begins with what a narrower one knows trains faster than one from scratch",
    cost="none",
)
class GrowHidden:
    """Copy hidden features, and have each share what it writes with its copies.

        y = sum_i w_i f_i(x),   feature i with copies c:   w_i = sum over i and its copies of r_c w_i,   sum of r_c = 1

    The copies are drawn by the run's seed. Net2Net has all shares r_c equal, and noise on the weights, as equal copies would stay
    equal; here the shares are drawn, so that they differ from the first step on, and the function is the same but for rounding.

    factor: hidden features that there are to be, times those there are: above 1.
    multiple: sizes are multiples of this.
    """

    needs: frozenset[str] = frozenset()
    divides = True

    def __init__(self, *, factor: Positive = 2.0, multiple: Count = 8) -> None:
        if factor <= 1:
            raise ValueError("grow_hidden: factor is above 1")
        self.factor, self.multiple = factor, multiple

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """Which features are copied, and how they share. Raises: UsageError where the model has no such axis."""
        anatomy, generator = model.anatomy(), torch.Generator().manual_seed(evidence.seed)
        axes = anatomy.axes("hidden") or [axis_of(anatomy, "hidden", None)]
        tensors = {}
        for axis in axes:
            size = -(-round(axis.size * self.factor) // self.multiple) * self.multiple
            drawn = torch.randint(axis.size, (max(size - axis.size, 1),), generator=generator)
            places = torch.cat([torch.arange(axis.size), drawn])
            parts = torch.rand(len(places), generator=generator) + 0.5
            whole = torch.zeros(axis.size).index_add(0, places, parts)
            tensors[f"{axis.layer}.features"] = places
            tensors[f"{axis.layer}.shares"] = parts / whole[places]
        return Decision({"layers": [axis.layer for axis in axes]}, tensors)

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The wider model."""
        for layer in decision.values["layers"]:
            axis = axis_of(model.anatomy(), "hidden", layer)
            places = decision.tensors[f"{layer}.features"].tolist()
            if not set(range(axis.size)) <= set(places):
                raise UsageError(f"what was decided for layer {layer} leaves out features that it has")
            resize(model, Cut(axis, places, repeats=True))
            shares = decision.tensors[f"{layer}.shares"]
            for one in axis.slices:
                if one.dim == 1:
                    weight = model.get_parameter(one.name)
                    with torch.no_grad():
                        weight.mul_(shares.to(weight))
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model as it is: its layers are plain."""
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        numbers = sum(parameter.numel() for parameter in model.parameters())
        sizes = sorted({axis.size for axis in model.anatomy().axes("hidden")})
        return f"grow_hidden: {' to '.join(map(str, sizes))} hidden features: {numbers:,} parameters"
