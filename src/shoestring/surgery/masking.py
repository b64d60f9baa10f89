"""What methods of sparse training share: matrices with some weights that are kept at zero.

A mask frees neither bytes nor time by itself: a matrix with zeros is stored and multiplied whole. It is a step on the way to a
format or a kernel that uses it.
"""

import abc
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.contract.objective import At
from shoestring.errors import UsageError

KEPT = "kept"
"""The buffer of a masked layer, [out, in] bool: which weights are there. So a checkpoint holds it."""


class Masking(abc.ABC):
    """An edit whose matrices lose weights while they are trained. A method says when and which.

    It is `Stepped`: after each step of the optimiser, what a mask leaves out is zero again.
    """

    needs: frozenset[str] = frozenset()
    group: int = 1
    """Weights of a row that a pattern counts together: a matrix whose rows do not divide into them is left whole."""

    @classmethod
    @abc.abstractmethod
    def options_for(cls, share: float) -> dict[str, Any]:
        """The options with which this share of the weights stays. Raises: UsageError where no pattern has it."""

    @abc.abstractmethod
    def update(self, layer: nn.Linear, at: At) -> None:
        """Change the mask of a layer, or its weights, after a step."""

    @abc.abstractmethod
    def said(self) -> str:
        """What is left out and when, in words."""

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """Which matrices are masked. Raises: UsageError where none can be."""
        names = [
            one.name
            for one in model.anatomy().matrices()
            if type(model.get_submodule(one.name)) is nn.Linear and one.weight.shape[-1] % self.group == 0
        ]
        if not names:
            raise UsageError(
                f"{type(self).__name__} finds no plain matrix whose rows divide into groups of {self.group}"
            )
        return Decision({"matrices": names})

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with masks that leave out nothing yet."""
        for name in decision.values["matrices"]:
            layer = model.get_submodule(name)
            if not isinstance(layer, nn.Linear):
                raise UsageError(f"{name} is no plain matrix, which the mask was decided for")
            layer.register_buffer(KEPT, torch.ones_like(layer.weight, dtype=torch.bool))
        model.changed()
        return model

    def before_step(self, model: LanguageModule, at: At) -> Charge:
        """As `Stepped.before_step`."""
        return NOTHING

    @torch.no_grad()
    def after_step(self, model: LanguageModule, at: At) -> None:
        """As `Stepped.after_step`."""
        for layer in masked(model):
            self.update(layer, at)
            layer.weight.mul_(kept_of(layer))

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model of plain layers, with zeros where the masks leave out weights."""
        for layer in masked(model):
            with torch.no_grad():
                layer.weight.mul_(kept_of(layer))
            del layer._buffers[KEPT]
        model.changed()
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        return f"{type(self).__name__}: {len(decision.values['matrices'])} matrices, {self.said()}"


def masked(model: nn.Module) -> Iterator[nn.Linear]:
    """The layers that have a mask."""
    return (module for module in model.modules() if isinstance(module, nn.Linear) and KEPT in module._buffers)


def kept_of(layer: nn.Linear) -> Tensor:
    """[out, in] bool: which weights of a layer are there."""
    found = layer._buffers[KEPT]
    assert found is not None
    return found


def zeros(models: Sequence[nn.Module]) -> float:
    """The share of the numbers of these models' matrices that are zero."""
    weights = [p for model in models for p in model.parameters() if p.ndim > 1]
    return sum(int((p == 0).sum()) for p in weights) / max(sum(p.numel() for p in weights), 1)


def largest_of_groups(weight: Tensor, keep: int, group: int) -> Tensor:
    """[out, in] bool: of every `group` weights of a row, one after the other, the `keep` of the largest size."""
    sizes = weight.detach().abs().unflatten(-1, (-1, group))
    chosen = sizes.topk(keep, dim=-1).indices
    return torch.zeros_like(sizes, dtype=torch.bool).scatter(-1, chosen, True).flatten(-2)


def pattern_for(name: str, share: float, group: int) -> dict[str, Any]:
    """The options 'keep' and 'group' with which this share stays: of `group`, or a multiple of it. Raises: UsageError."""
    exact = Fraction(share).limit_denominator(64)
    size = group if group % exact.denominator == 0 else exact.denominator
    if abs(float(exact) - share) > 1e-6 or size > 32:
        raise UsageError(
            f"{name} keeps some of every few weights: a share such as 0.5x (2 of 4), 0.25x or 0.125x is needed"
        )
    return {"keep": int(exact * size), "group": size}


def check_pattern(name: str, keep: int, group: int) -> None:
    """Raises: ValueError for a pattern that keeps nothing, or all."""
    if not 0 < keep < group:
        raise ValueError(f"{name}: of {group} weights {keep} cannot be kept: keep at least one, and not all")
