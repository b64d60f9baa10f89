"""What methods of structured pruning share: which indices of which axes stay is a decision; `resize` carries it out."""

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.budget.charge import Charge
from shoestring.contract.anatomy import Anatomy, Axis
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.surgery.resize import Cut, head_groups, resize


@dataclass(frozen=True)
class Shares:
    """How much of each axis stays, as shares from above 0 to 1.

    width: features of the residual stream. hidden: features of each channel mixer.
    heads: heads of keys and values of each layer, with the query heads that share them.
    ssm_heads, ssm_channels, ssm_state: heads of each state-space layer, channels of each head, size of the state.
    """

    width: float = 1.0
    hidden: float = 1.0
    heads: float = 1.0
    ssm_heads: float = 1.0
    ssm_channels: float = 1.0
    ssm_state: float = 1.0

    def __post_init__(self) -> None:
        shares = astuple(self)
        if not all(0 < share <= 1 for share in shares):
            raise ValueError(f"shares that stay are above 0 and at most 1: {self}")
        if all(share == 1 for share in shares):
            raise ValueError("nothing is to be pruned: give width, hidden or heads, the share that stays, below 1")


def kept_count(size: int, share: float, multiple: int = 1) -> int:
    """How many of `size` stay: the nearest multiple of `multiple` to their share, at least one multiple, at most all."""
    if size <= multiple or share == 1:
        return size
    return min(size, max(multiple, round(size * share / multiple) * multiple))


def kept_of(axis: Axis, share: float, multiple: int = 1) -> int:
    """How many indices of an axis stay: of each of its runs, as many as `kept_count` says."""
    return axis.runs * kept_count(axis.size // axis.runs, share, multiple)


def kept_shared(anatomy: Anatomy, axis: Axis, share: float, multiple: int) -> int:
    """How many features of the shared experts stay, of the axis 'shared_hidden': as many times an expert's as before."""
    each = axis_of(anatomy, "expert_hidden", axis.layer).size
    return axis.size // each * kept_count(each, share, multiple)


def width_multiple(heads: int, multiple: int) -> int:
    """What the width is to be a multiple of: of the number of query heads too, as stock classes of transformers want."""
    return math.lcm(heads, multiple)


def kept_heads(model: LanguageModule, share: float) -> int:
    """Query heads of the first layer once this share of its key and value heads stays; 1 where the model has no such axis."""
    anatomy = model.anatomy()
    shared = anatomy.axes("key_value_head")
    heads = [axis for axis in anatomy.axes("head") if shared and axis.layer == shared[0].layer]
    return heads[0].group * kept_count(shared[0].size, share) if heads else 1


Kept = list[dict[str, Any]]
"""Of each axis that is cut: its kind, its layer, and the indices that stay, in JSON."""


def axis_of(anatomy: Anatomy, kind: str, layer: int | None) -> Axis:
    """The axis of this kind and layer. Raises: UsageError where the model has none."""
    for axis in anatomy.axes(kind):
        if axis.layer == layer:
            return axis
    raise UsageError(
        f"this model has no axis '{kind}' that can be cut: only native models, and those with a bridge, have one"
    )


def readers(model: nn.Module, axis: Axis) -> list[str]:
    """The linear layers that read the features of an axis: what they read says which of its indices matter."""
    names = [one.name.removesuffix(".weight") for one in axis.slices if one.dim == 1 and one.name.endswith(".weight")]
    return [name for name in names if isinstance(model.get_submodule(name), nn.Linear)]


class Pruning(abc.ABC):
    """An edit that leaves some indices of some axes. A method says which; it may change weights that stay, too."""

    needs: frozenset[str] = frozenset({"text"})

    @abc.abstractmethod
    def choose(self, model: LanguageModule, evidence: Evidence) -> tuple[Kept, Mapping[str, Tensor], Charge]:
        """(what stays, weights that change by their names after the cut, what deciding took). The model stays as it is."""

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """What stays. Raises: UsageError where the model has no such axes, and without text where the method looks at some."""
        kept, tensors, spent = self.choose(model, evidence)
        return Decision({"keep": kept}, tensors, spent)

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The smaller model."""
        for one in decision.values["keep"]:
            cut(model, one["kind"], one["layer"], one["indices"])
        for name, tensor in decision.tensors.items():
            old = model.get_parameter(name)
            made = tensor.to(device=old.device, dtype=old.dtype, copy=True)
            if made.shape != old.shape:
                raise UsageError(f"{name} is {list(old.shape)} after the cut, and {list(made.shape)} was decided")
            with torch.no_grad():
                old.copy_(made)
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model as it is: its layers are plain."""
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        parts: dict[str, list[int]] = {}
        for one in decision.values["keep"]:
            parts.setdefault(one["kind"], []).append(len(one["indices"]))
        said = [f"{kind} {_range(sizes)}" for kind, sizes in parts.items()]
        numbers = sum(parameter.numel() for parameter in model.parameters())
        return f"{type(self).__name__}: {', '.join(said)} stay: {numbers:,} parameters"


def cut(model: LanguageModule, kind: str, layer: int | None, indices: Sequence[int]) -> None:
    """Leave these indices of an axis. Of 'key_value_head', the query heads that share one go with it."""
    anatomy = model.anatomy()
    if kind == "key_value_head" and layer is not None:
        resize(model, *head_groups(anatomy, layer, indices))
    else:
        resize(model, Cut(axis_of(anatomy, kind, layer), indices))


def best(scores: Tensor, count: int) -> list[int]:
    """The `count` indices of the largest scores, in their own order; of equals, the first."""
    return sorted(scores.argsort(descending=True, stable=True)[:count].tolist())


def first_of(axis: Axis, count: int) -> list[int]:
    """The first indices of each of the runs of an axis, `count` in all."""
    length = axis.size // axis.runs
    return [run * length + index for run in range(axis.runs) for index in range(count // axis.runs)]


def best_of(axis: Axis, scores: Tensor, count: int) -> list[int]:
    """As `best`; of each of the runs of the axis, as many."""
    length = axis.size // axis.runs
    return [
        run * length + index for run, own in enumerate(scores.split(length)) for index in best(own, count // axis.runs)
    ]


def _range(sizes: Sequence[int]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)}"
