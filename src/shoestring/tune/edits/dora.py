"""Low-rank adapters of the directions of a matrix's rows, and their magnitudes apart."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shoestring.contract.edit import Decision
from shoestring.contract.model import LanguageModule
from shoestring.contract.role import ADAPTER, VECTOR
from shoestring.errors import UsageError
from shoestring.method import Count, Positive, method
from shoestring.tune import matrix
from shoestring.tune.adapted import Adapted
from shoestring.tune.adapter_edit import CHOSEN, AdapterEdit
from shoestring.tune.edits.lora import LoRA, factors
from shoestring.tune.low_rank_linear import LowRankLinear
from shoestring.tune.peft_adapter import MatrixPart, PeftAdapter
from shoestring.tune.peft_low_rank import MAGNITUDE


class DirectedLinear(LowRankLinear):
    """y = (m / |W + scale B A|) (W + scale B A) x + b, with A, B and m [out] trained; norms are of rows."""

    roles: ClassVar = {"down": ADAPTER, "up": ADAPTER, "magnitude": VECTOR}
    reads_base: ClassVar = True  # its norms are of W + scale B A

    def __init__(self, base: nn.Module, down: Tensor, up: Tensor, scale: float, magnitude: Tensor) -> None:
        super().__init__(base, down, up, scale)
        self.magnitude = nn.Parameter(magnitude)

    def adapt(self, x: Tensor, plain: Tensor) -> Tensor:
        with torch.no_grad():  # the norm counts as a constant, section 4.3 of the paper
            norm = self._directions(matrix.weight_of(self.base).to(self.down.dtype)).norm(dim=1)
        bias = matrix.bias_of(self.base)
        turned = (self.magnitude / norm) * ((plain if bias is None else plain - bias) + self.added(x))
        return turned if bias is None else turned + bias

    def change(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """m (W + scale B A) / |W + scale B A|."""
        made = self._directions(weight)
        return made * (self.magnitude.float() / made.norm(dim=1))[:, None], bias

    def _directions(self, weight: Tensor) -> Tensor:
        return weight + self.scale * self.up.to(weight.dtype) @ self.down.to(weight.dtype)

    def added_flops(self, tokens: int, backward: bool, inputs: bool) -> int:
        norms = 2 * self.out_features * self.down.shape[0] * self.in_features
        return super().added_flops(tokens, backward, inputs) + norms


@method(
    "tune",
    kind="edit",
    name="dora",
    paper="DoRA: Weight-Decomposed Low-Rank Adaptation, arXiv:2402.09353",
    claim="consistently outperforms LoRA on LLaMA, LLaVA and VL-BART in commonsense reasoning, visual instruction tuning and "
    "image/video-text understanding, without more cost in use",
    cost="as lora, and out parameters a matrix; 2 rank in out operations a pass for the norms, and the base's matrix in float",
)
class DoRA(LoRA):
    """LoRA of the directions of a matrix's rows; how long each row is, is trained apart.

        W' = m (W + (alpha / rank) B A) / |W + (alpha / rank) B A|,   m [out],  A [rank, in],  B [out, rank]

    The norm is of each row (one output feature; the paper writes W transposed and says columns), and no gradient passes through
    it. m starts at the norms of W, B at zero: a tuned model starts as the one it is made of.

    rank: the inner size.
    alpha: the scale of what is added, times the rank.
    targets: patterns of the names of the matrices ('*.qkv'); empty: all of the layers.
    """

    name: ClassVar[str] = "dora"
    kind: ClassVar[type[Adapted]] = DirectedLinear

    def __init__(self, *, rank: Count = 8, alpha: Positive = 16.0, targets: tuple[str, ...] = ()) -> None:
        super().__init__(rank=rank, alpha=alpha, targets=targets)

    def place(self, base: nn.Module, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> DirectedLinear:
        down, up = factors(base, tensors)
        magnitude = tensors.get("magnitude")
        if magnitude is None:
            magnitude = matrix.weight_of(base).float().norm(dim=1)
        return DirectedLinear(base, down, up, values["scale"], magnitude)

    @classmethod
    def reads(cls, settings: Mapping[str, Any]) -> bool:
        return bool(settings.get("use_dora")) and not settings.get("use_rslora")

    @classmethod
    def imported(
        cls, adapter: PeftAdapter, model: LanguageModule, parts: Sequence[MatrixPart]
    ) -> tuple[AdapterEdit, Decision]:
        """As `LoRA.imported`. Rows that the file says nothing of keep their length."""
        edit, decision = super().imported(adapter, model, parts)
        tensors = dict(decision.tensors)
        for name in decision.values[CHOSEN]:
            magnitude = matrix.weight_of(model.get_submodule(name)).float().norm(dim=1).cpu()
            for part in parts:
                if part.ours == name and part.theirs in adapter.tensors:
                    own = adapter.tensors[part.theirs]
                    if MAGNITUDE not in own:
                        raise UsageError(f"'{part.theirs}' lacks {MAGNITUDE}")
                    part.put(magnitude, own[MAGNITUDE].flatten())
            tensors[f"{name}.magnitude"] = magnitude
        return edit, Decision(decision.values, tensors)

    def magnitudes(self, layers: Mapping[str, Any]) -> dict[str, Tensor] | None:
        return {name: layer.magnitude.detach() for name, layer in layers.items()}
