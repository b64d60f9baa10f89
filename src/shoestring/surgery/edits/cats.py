"""Gated layers that leave out the hidden features whose gates are almost shut."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract import cost
from shoestring.contract.cost import Shape
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Fraction, method

SAMPLE = 512
"""Places whose gates are kept of the text, of each layer."""


class ColumnLinear(nn.Module):
    """y = W x + b, with W kept by columns [in, out], so that those of some inputs lie together and can be read alone."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        weight = plain.weight
        self.out_features, self.in_features = weight.shape
        self.columns = nn.Parameter(weight.detach().T.contiguous(), weight.requires_grad)
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return F.linear(x, self.columns.T, self.bias)


class ThresholdedGate(nn.Module):
    """y = W_out (t(silu(W_gate x)) * W_up x), with t(z) = z where |z| >= threshold, else 0. x: [..., width] -> [..., width].

    One token at a time, the rows of W_up and the columns of W_out whose gate is shut are not read.

    mixer: the gated layer whose place it takes; its matrices are used, W_out by columns.
    threshold: a number.
    """

    gate_up: Any
    output: Any

    def __init__(self, mixer: Any, threshold: float) -> None:
        super().__init__()
        self.gate_up, self.output = mixer.gate_up, ColumnLinear(mixer.output)
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        if x.numel() == x.shape[-1] and not torch.is_grad_enabled() and type(self.gate_up) is nn.Linear:
            return self._one(x)
        gate, up = self.gate_up(x).chunk(2, -1)
        opened = F.silu(gate)
        return self.output(torch.where(opened.abs() >= self.threshold, opened, 0.0) * up)

    def _one(self, x: Tensor) -> Tensor:
        """Of one token: what is shut is not read."""
        up, out = self.gate_up, self.output
        hidden, row = out.in_features, x.reshape(-1)
        bias = None if up.bias is None else up.bias[:hidden]
        opened = F.silu(F.linear(row, up.weight[:hidden], bias))
        there = (opened.abs() >= self.threshold).nonzero()[:, 0]
        rows = up.weight[hidden:].index_select(0, there)
        inner = rows @ row if up.bias is None else rows @ row + up.bias[hidden:][there]
        made = (opened[there] * inner) @ out.columns.index_select(0, there)
        return (made if out.bias is None else made + out.bias).view_as(x)

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass over several tokens, which skips nothing."""
        inside = inputs or (shape.backward and cost.trains(self.gate_up))
        first = cost.linear(self.gate_up, shape.tokens, shape.backward, inputs)
        return first + cost.linear(self.output, shape.tokens, shape.backward, inside)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold:g}"


@method(
    "surgery",
    kind="edit",
    name="cats",
    paper="CATS: Contextually-Aware Thresholding for Sparsity in Large Language Models, arXiv:2404.08763",
    claim="at 50 % of activations, within 1 to 2 % of the base on tasks without tuning; 15 % less time a token with a GPU kernel",
    cost="one forward pass over the calibration text; W_out is laid out by columns",
)
class CATS:
    """Shut the gates of each layer that are smaller than most are on a calibration text.

        y = W_out (t(silu(W_gate x)) * W_up x),   t(z) = z where |z| >= the `sparsity` quantile of |silu(W_gate x)|, else 0

    Each layer has a threshold of its own. One token at a time, what the shut gates would weigh is not read; several at once, all is
    computed. No bytes are freed. The edit has no plain form, so the model stays a folder of Shoestring's. The stated cost is that
    of computing all, as what is skipped depends on the text.

    sparsity: share of the gates that are shut, on the calibration text.
    """

    needs: frozenset[str] = frozenset({"text"})

    def __init__(self, *, sparsity: Fraction = 0.5) -> None:
        if sparsity >= 1:
            raise ValueError("cats: sparsity is below 1")
        self.sparsity = sparsity

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The thresholds. Raises: UsageError without text, and for a model without gated layers."""
        if not evidence.text:
            raise UsageError("cats looks at text to decide: none was given to it")
        names = gated(model)
        seen: dict[str, list[Tensor]] = {name: [] for name in names}
        each, spent = max(1, SAMPLE // len(evidence.text)), NOTHING
        with torch.no_grad():
            for batch in evidence.text:
                reading = model.read(batch.inputs.to(model.device), tap=[f"{name}.gate_up" for name in names])
                spent += Charge(flops=reading.cost.flops, read=batch.targets.numel(), calls=1)
                for name in names:
                    made = reading.tapped[f"{name}.gate_up"].flatten(0, -2)
                    step = max(1, len(made) // each)
                    seen[name].append(F.silu(made[::step].chunk(2, -1)[0].float()).abs().flatten().cpu())
        thresholds = {}
        for name, parts in seen.items():
            values = torch.cat(parts)
            place = int(self.sparsity * len(values))
            thresholds[name] = 0.0 if not place else float(values.kthvalue(place + 1).values)
        return Decision({"thresholds": thresholds}, spent=spent)

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with thresholds."""
        for name, threshold in decision.values["thresholds"].items():
            model.set_submodule(name, ThresholdedGate(model.get_submodule(name), threshold))
        model.changed()
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """Raises: UsageError, as there is no plain form."""
        raise UsageError("cats does more than one matrix can: the model stays a folder of Shoestring's")

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        found = sorted(decision.values["thresholds"].values())
        return f"cats: {self.sparsity:.0%} of gates are shut, at thresholds from {found[0]:.3g} to {found[-1]:.3g}"


def gated(model: LanguageModule) -> list[str]:
    """The names of layers that compute W_out (silu(W_gate x) * W_up x). Raises: UsageError where there is none."""
    found = []
    for name, module in model.named_modules():
        parts = [getattr(module, part, None) for part in ("gate_up", "output")]
        if all(isinstance(part, nn.Linear) for part in parts) and _is_gated(module, *parts):
            found.append(name)
    if not found:
        raise UsageError(
            "cats needs gated layers of silu (SwiGLU), as native models and those of Llama's and Qwen's families have"
        )
    return found


@torch.no_grad()
def _is_gated(module: nn.Module, gate_up: Any, output: Any) -> bool:
    x = torch.linspace(-1, 1, gate_up.in_features, device=gate_up.weight.device)[None].to(gate_up.weight.dtype)
    gate, up = gate_up(x).chunk(2, -1)
    return torch.allclose(module(x), output(F.silu(gate) * up), atol=1e-3)
