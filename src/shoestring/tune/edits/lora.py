"""Low-rank adapters."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shoestring.contract.edit import Decision
from shoestring.contract.model import LanguageModule
from shoestring.method import Count, Positive, method
from shoestring.tune import matrix
from shoestring.tune.adapted import Adapted
from shoestring.tune.adapter_edit import CHOSEN, AdapterEdit
from shoestring.tune.low_rank_linear import LowRankLinear
from shoestring.tune.peft_adapter import MatrixPart, PeftAdapter
from shoestring.tune.peft_low_rank import PLAIN, Factors, exported, factors_of, joined


@method(
    "tune",
    kind="edit",
    name="lora",
    paper="LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685",
    claim="on a par with or better than full fine-tuning on RoBERTa, DeBERTa, GPT-2 and GPT-3, with far fewer trained parameters",
    cost="rank (in + out) parameters and 2 rank (in + out) operations a token for each matrix; no weight gradients of the base",
)
class LoRA(AdapterEdit):
    """Train a product of two thin matrices beside each weight matrix, and nothing else.

        y = W x + (alpha / rank) B A x,   A [rank, in],  B [out, rank]

    A starts uniform in +- 1 / sqrt(in) (as peft has it), B at zero: a tuned model starts as the one it is made of.
    The paper adapts the attention matrices alone; here all matrices of the layers are, unless `targets` names some.

    rank: the inner size.
    alpha: the scale of what is added, times the rank.
    targets: patterns of the names of the matrices ('*.qkv'); empty: all of the layers.
    """

    name: ClassVar[str] = "lora"
    kind: ClassVar[type[Adapted]] = LowRankLinear
    peft_types: ClassVar[tuple[str, ...]] = ("LORA",)
    stabilised: ClassVar[bool] = False
    """Whether what is added is divided by the square root of the rank."""

    def __init__(self, *, rank: Count = 8, alpha: Positive = 16.0, targets: tuple[str, ...] = ()) -> None:
        super().__init__(targets)
        self.rank, self.alpha = rank, alpha

    @property
    def scale(self) -> float:
        """Of what is added."""
        return self.alpha / self.rank

    def values(self) -> dict[str, Any]:
        return {"rank": self.rank, "scale": self.scale}

    def begin(self, base: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        inputs, _ = matrix.sizes(base)
        bound = 1 / math.sqrt(inputs)
        return {"down": (torch.rand(self.rank, inputs, generator=generator) * 2 - 1) * bound}

    def place(self, base: nn.Module, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> LowRankLinear:
        return LowRankLinear(base, *factors(base, tensors), values["scale"])

    @classmethod
    def reads(cls, settings: Mapping[str, Any]) -> bool:
        return not settings.get("use_dora") and bool(settings.get("use_rslora")) == cls.stabilised

    @classmethod
    def imported(
        cls, adapter: PeftAdapter, model: LanguageModule, parts: Sequence[MatrixPart]
    ) -> tuple[AdapterEdit, Decision]:
        """As `AdapterEdit.imported`. Adapters of matrices that are one here become one of all their ranks."""
        adapter.refuse(PLAIN)
        found = {part: factors_of(adapter, part.theirs) for part in parts if part.theirs in adapter.tensors}
        scale, tensors = next(iter(found.values())).scale, dict[str, Tensor]()
        names = list(dict.fromkeys(part.ours for part in found))
        for name in names:
            own = {part: one for part, one in found.items() if part.ours == name}
            down, up = joined(own, matrix.sizes(model.get_submodule(name)), scale)
            tensors |= {f"{name}.down": down, f"{name}.up": up}
        rank = next(iter(found.values())).down.shape[0]
        edit = cls(rank=rank, alpha=scale * (math.sqrt(rank) if cls.stabilised else rank))
        return edit, Decision({CHOSEN: names, "rank": rank, "scale": scale}, tensors)

    def exported(self, model: LanguageModule, values: Mapping[str, Any], parts: Sequence[MatrixPart]) -> PeftAdapter:
        """As `AdapterEdit.exported`. The adapter of a matrix that holds several of theirs becomes one of each, with the same A."""
        layers: dict[str, Any] = {name: model.get_submodule(name) for name in values[CHOSEN]}
        return exported(
            {name: Factors(layer.down.detach(), layer.up.detach(), layer.scale) for name, layer in layers.items()},
            parts,
            stabilised=self.stabilised,
            transposed=any(matrix.is_transposed(layer.base) for layer in layers.values()),
            magnitudes=self.magnitudes(layers),
        )

    def magnitudes(self, layers: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """Of the rows of each matrix, where they are trained apart."""
        return None

    def shape(self) -> str:
        return f"adapters of rank {self.rank}"


def factors(base: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(A, B) of an adapter: B at zero where it was not trained yet."""
    down = tensors["down"]
    up = tensors.get("up")
    return down, down.new_zeros(matrix.sizes(base)[1], down.shape[0]) if up is None else up
