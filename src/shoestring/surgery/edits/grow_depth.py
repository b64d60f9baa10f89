"""More layers, in a model that computes what it did."""

from typing import Literal

from torch import nn

from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Count, method

By = Literal["nothing", "stack"]


@method(
    "surgery",
    kind="edit",
    name="grow_depth",
    paper="Net2Net: Accelerating Learning via Knowledge Transfer, arXiv:1511.05641; "
    "Stacking Your Transformers: A Closer Look at Model Growth for Efficient LLM Pre-Training, arXiv:2405.15319",
    claim="a larger network that begins with what a smaller one knows trains faster than one from scratch",
    cost="none",
)
class GrowDepth:
    """Put copies of layers behind them.

    'nothing': the matrices of a copy that write to the residual stream are zero, x + f(x) = x, so the model computes what it did,
    and what the copies read is there to learn from. 'stack': copies compute what their layers do; the model is another one then,
    which the second paper finds to train the faster.

    count: layers that come, evenly between the first and the last; at most as many as there are.
    by: what a copy begins as.
    """

    needs: frozenset[str] = frozenset()
    divides = True

    def __init__(self, *, count: Count = 1, by: By = "nothing") -> None:
        self.count, self.by = count, by

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """Which layers are copied. Raises: UsageError where there are not as many, or the model does not tell what writes."""
        anatomy = model.anatomy()
        total = len(anatomy.layers)
        if self.count > total:
            raise UsageError(f"grow_depth: {self.count} layers cannot be copied of a model that has {total}")
        if self.by == "nothing" and not anatomy.axes("width"):
            raise UsageError(
                "grow_depth: this model does not tell which matrices write to its residual stream, so that a copy could begin as "
                "nothing: give by = stack"
            )
        step = total / self.count
        return Decision({"copied": sorted({int(step * (place + 0.5)) for place in range(self.count)})})

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with copies."""
        copied = list(decision.values["copied"])
        model.anatomy().copy_layers(copied)
        if self.by == "nothing":
            anatomy = model.anatomy()
            copies = [f"{anatomy.layers[number + place + 1]}." for place, number in enumerate(copied)]
            (width,) = anatomy.axes("width")
            for one in width.slices:
                owner = model.get_submodule(one.name.rpartition(".")[0])
                if one.dim == 0 and one.name.startswith(tuple(copies)) and isinstance(owner, nn.Linear):
                    model.get_parameter(one.name).data.zero_()
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model as it is: its layers are plain."""
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        numbers = sum(parameter.numel() for parameter in model.parameters())
        copied = ", ".join(map(str, decision.values["copied"]))
        begin = "nothing" if self.by == "nothing" else "they are"
        return f"grow_depth: copies of layers {copied}, which begin as {begin}: {numbers:,} parameters"
