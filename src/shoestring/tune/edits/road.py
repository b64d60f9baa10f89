"""Adapters that rotate pairs of output features."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from shoestring.contract.edit import Decision
from shoestring.contract.model import LanguageModule
from shoestring.contract.role import VECTOR
from shoestring.errors import UsageError
from shoestring.method import Count, method
from shoestring.tune import matrix
from shoestring.tune.adapted import Adapted
from shoestring.tune.adapter_edit import CHOSEN, AdapterEdit
from shoestring.tune.peft_adapter import MatrixPart, PeftAdapter, common, parts_of

Each = Literal[1, 2, 4]
EACH: tuple[Each, ...] = (1, 2, 4)


class RotatedLinear(Adapted):
    """y = R base(x): pairs of features are turned by theta and scaled by alpha, both [each out / 2].

    group: features i and i + group / 2 of each run of `group` are a pair.
    each: angles of a pair: 1, 2 (one a feature of the outcome) or 4 (one an entry of its matrix).
    """

    roles: ClassVar = {"theta": VECTOR, "alpha": VECTOR}

    def __init__(self, base: nn.Module, theta: Tensor, alpha: Tensor, group: int, each: int) -> None:
        super().__init__(base)
        self.group, self.each = group, each
        self.theta, self.alpha = nn.Parameter(theta), nn.Parameter(alpha)

    def adapt(self, x: Tensor, plain: Tensor) -> Tensor:
        return self._turned(plain)

    def change(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """R W and R b."""
        return self._turned(weight.T).T, None if bias is None else self._turned(bias)

    def added_flops(self, tokens: int, backward: bool, inputs: bool) -> int:
        return 0  # no product of matrices

    def _turned(self, x: Tensor) -> Tensor:
        """R x, of x [..., out]."""
        halves = x.unflatten(-1, (-1, 2, self.group // 2))
        first, second = halves[..., 0, :], halves[..., 1, :]
        one, other, third, fourth = self._entries(x.dtype)
        turned = torch.stack((one * first - other * second, third * first + fourth * second), -2)
        return turned.flatten(-3)

    def _entries(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha cos theta, alpha sin theta, alpha sin theta and alpha cos theta of the entries of each pair's matrix, [groups,
        group / 2] each."""
        theta, alpha = (one.view(-1, self.each, self.group // 2).to(dtype) for one in (self.theta, self.alpha))
        cos, sin = alpha * theta.cos(), alpha * theta.sin()
        places = {1: (0, 0, 0, 0), 2: (0, 0, 1, 1), 4: (0, 2, 3, 1)}[self.each]
        return cos[:, places[0]], sin[:, places[1]], sin[:, places[2]], cos[:, places[3]]

    def extra_repr(self) -> str:
        return f"group={self.group}, each={self.each}"


@method(
    "tune",
    kind="edit",
    name="road",
    paper="3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and Composability, arXiv:2409.00119",
    claim="with under 0.1% of the parameters trained, optimal performance on GLUE, commonsense and arithmetic reasoning; rows of a "
    "batch may have adapters each at about the cost of an element-wise product",
    cost="`each` angles and scales a pair of output features; element-wise products, no matrix",
)
class RoAd(AdapterEdit):
    """Rotate and scale pairs of the output features of each matrix.

        y = R (W x + b),   R of blocks [[a_11 cos t_11, -a_12 sin t_12], [a_21 sin t_21, a_22 cos t_22]], one a pair

    The angles t start at zero, the scales a at one: a tuned model starts as the one it is made of. The paper pairs neighbours;
    here, as peft does it, feature i of a group is paired with i + group / 2.

    each: different angles and scales of a pair: 1 (all equal), 2 (a row of the block its own) or 4.
    group: features of a group: even, and a divisor of the outputs of every matrix.
    targets: patterns of the names of the matrices ('*.qkv'); empty: all of the layers.
    """

    name: ClassVar[str] = "road"
    kind: ClassVar[type[Adapted]] = RotatedLinear
    rate: ClassVar[float] = 3e-3
    peft_types: ClassVar[tuple[str, ...]] = ("ROAD",)

    def __init__(self, *, each: Each = 1, group: Count = 64, targets: tuple[str, ...] = ()) -> None:
        if group % 2:
            raise ValueError(f"road: group = {group} features are no pairs")
        super().__init__(targets)
        self.each, self.group = each, group

    def values(self) -> dict[str, Any]:
        return {"each": self.each, "group": self.group}

    def begin(self, base: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        _, outputs = matrix.sizes(base)
        if outputs % self.group:
            raise UsageError(
                f"its {outputs} outputs do not divide into groups of {self.group}: set group to an even divisor"
            )
        return {}

    def place(self, base: nn.Module, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> RotatedLinear:
        size = matrix.sizes(base)[1] * values["each"] // 2
        start = torch.ones(size, device=matrix.device_of(base))
        theta, alpha = tensors.get("theta"), tensors.get("alpha")
        return RotatedLinear(
            base,
            torch.zeros_like(start) if theta is None else theta,
            start if alpha is None else alpha,
            values["group"],
            values["each"],
        )

    @classmethod
    def imported(
        cls, adapter: PeftAdapter, model: LanguageModule, parts: Sequence[MatrixPart]
    ) -> tuple[AdapterEdit, Decision]:
        """As `AdapterEdit.imported`. Rows that the file says nothing of are not turned."""
        adapter.refuse({"modules_to_save": None})
        group, variant = adapter.settings.get("group_size", 64), str(adapter.settings.get("variant", "road_1"))
        each = {f"road_{one}": one for one in EACH}.get(variant)
        if each is None or isinstance(group, bool) or not isinstance(group, int):
            raise UsageError(
                f"adapter_config.json: variant {variant[:40]} with group_size {str(group)[:40]} is not known here"
            )
        edit, tensors = cls(each=each, group=group), dict[str, Tensor]()
        names = list(dict.fromkeys(part.ours for part in parts if part.theirs in adapter.tensors))
        for name in names:
            base = model.get_submodule(name)
            edit.begin(base, torch.Generator())  # refuses outputs that do not divide
            size = matrix.sizes(base)[1] * each // 2
            theta, alpha = torch.zeros(size), torch.ones(size)
            for part in parts_of(name, parts):
                own = adapter.tensors.get(part.theirs)
                if own is not None:
                    if set(own) != {"road_theta", "road_alpha"}:
                        raise UsageError(f"'{part.theirs}' has {', '.join(own)}, and not road_theta and road_alpha")
                    where = _pairs(part, group, each)
                    where.put(theta, own["road_theta"])
                    where.put(alpha, own["road_alpha"])
            tensors |= {f"{name}.theta": theta, f"{name}.alpha": alpha}
        return edit, Decision({CHOSEN: names, **edit.values()}, tensors)

    def exported(self, model: LanguageModule, values: Mapping[str, Any], parts: Sequence[MatrixPart]) -> PeftAdapter:
        tensors = {}
        for name in values[CHOSEN]:
            layer: Any = model.get_submodule(name)
            if matrix.is_transposed(layer.base):
                raise UsageError(
                    f"{name} is a Conv1D, which peft does not turn: it cannot leave as an adapter of its kind"
                )
            for part in parts_of(name, parts):
                where = _pairs(part, layer.group, layer.each)
                tensors[part.theirs] = {
                    "road_theta": where.take(layer.theta.detach()),
                    "road_alpha": where.take(layer.alpha.detach()),
                }
        settings = {
            "peft_type": "ROAD",
            "task_type": "CAUSAL_LM",
            "variant": f"road_{values['each']}",
            "group_size": values["group"],
            "target_modules": common(list(tensors), parts),
            "inference_mode": True,
        }
        return PeftAdapter(settings, tensors)

    def shape(self) -> str:
        return f"rotations, {self.each} a pair of features,"


def _pairs(part: MatrixPart, group: int, each: int) -> MatrixPart:
    """Where the angles of a part lie. Raises: UsageError where pairs would be torn apart."""
    if part.order is not None or part.start % group or (part.rows or 0) % group:
        raise UsageError(
            f"'{part.theirs}' has its rows in another order, or no whole groups of {group}: set group smaller"
        )
    return part._replace(start=part.start * each // 2, rows=None if part.rows is None else part.rows * each // 2)
