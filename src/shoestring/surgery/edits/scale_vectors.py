"""Scale vectors of norms, of each branch by itself, on both sides of a matrix, as directions and magnitudes."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.contract.role import INPUT_SCALE, VECTOR
from shoestring.method import method
from shoestring.surgery.norm_readers import norm_readers, norms_of
from shoestring.surgery.plain_linear import plain_linear


class ScaledLinear(nn.Module):
    """y = b * (W_r (g_r * x)) + bias, of each branch r of rows, with g_r = m_r s_r / rms(s_r) where magnitudes are apart, else s_r.

    base: the linear layer whose place it takes. scale: [in], what g_r is at first. rows: of each branch, together all of them.
    outputs: whether there is b, [out]. directions: whether there are magnitudes m, [branches].
    """

    roles: ClassVar[dict[str, str]] = {"scales": INPUT_SCALE, "magnitudes": INPUT_SCALE, "output_scale": VECTOR}

    def __init__(
        self, base: nn.Linear, scale: Tensor, rows: tuple[int, ...], *, outputs: bool, directions: bool
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.matrix, self.bias, self.rows = base.weight, base.bias, rows
        trained = base.weight.requires_grad
        self.scales = nn.Parameter(scale.expand(len(rows), -1).clone(), trained)
        sizes = self.scales.detach().square().mean(1).sqrt()
        self.magnitudes = nn.Parameter(sizes, trained) if directions else None
        self.output_scale = nn.Parameter(torch.ones_like(base.weight[:, 0]), trained) if outputs else None
        if hasattr(base, "row_blocks"):  # which rows are a head's, for optimisers
            setattr(self, "row_blocks", base.row_blocks)  # noqa: B010 (mypy forbids the plain form)

    @property
    def weight(self) -> Tensor:
        """[out, in], as a plain layer has it."""
        scales: Tensor = self.scales
        if self.magnitudes is not None:
            sizes = scales.square().mean(1).sqrt().clamp_min(1e-12)
            scales = scales * (self.magnitudes / sizes)[:, None]
        repeats = torch.tensor(self.rows, device=scales.device)
        made = self.matrix * scales.repeat_interleave(repeats, 0, output_size=self.out_features)
        return made if self.output_scale is None else made * self.output_scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return F.linear(x, self.weight, self.bias)


@method(
    "surgery",
    kind="edit",
    name="scale_vectors",
    paper="Negligible in Size, Significant in Effect: On Scale Vectors in Large Language Models, arXiv:2605.26895",
    claim="all three together, a lower final loss than tuned baselines from 0.12B to 2B parameters, dense and with experts",
    cost="two products of the size of each matrix a pass; a vector for each branch and each output of a matrix",
)
class ScaleVectors:
    """Train the scales of norms where they act: at the matrices that read what is normed, and with weight decay.

    Mingze Wang et al., 2026, arXiv:2605.26895.

        y_r = b_r * (W_r (g_r * x / rms(x))),   g_r = m_r s_r / rms(s_r)

    of each branch r that reads the same norm: queries, keys and values; gate and up. Before, one g, the norm's, served all. g_r is
    that at first, b_r = 1, m_r = rms(g), so that the model computes what it did. g_r gets the optimiser's weight decay, as
    a matrix follows it; b and the scales of norms that no matrix follows (of queries and keys) get none. Folded, all is in W.

    The text of the paper could not be read beyond its abstract and summaries: that b stands at the same matrices as g, and
    that the size of s is its root mean square, are choices made here. The norm before the head keeps its scale, without decay.

    branches: a vector for each branch; else one for all rows. outputs: b. directions: m and s in place of g alone.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, *, branches: bool = True, outputs: bool = True, directions: bool = True) -> None:
        self.branches, self.outputs, self.directions = branches, outputs, directions

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """Nothing is to be decided. Raises: UsageError where a norm has no scale alone, or something else than plain linear layers
        reads it."""
        list(norm_readers(model, "scale_vectors"))
        return Decision()

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with scales at its matrices."""
        for norm, name, starts in list(norm_readers(model, "scale_vectors")):
            base: Any = model.get_submodule(name)
            ends = (*starts[1:], base.out_features) if self.branches else (base.out_features,)
            rows = tuple(end - start for start, end in zip(starts, ends, strict=False))
            scale = model.get_parameter(f"{norm}.weight").detach()
            model.set_submodule(
                name,
                ScaledLinear(base, scale, rows, outputs=self.outputs, directions=self.directions),
            )
        for norm in norms_of(model):
            weight: Any = model.get_submodule(norm).weight
            weight.data = torch.ones_like(weight)
            weight.requires_grad_(False)
        model.changed()
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model of plain layers; the scales of its norms are 1."""
        for name, layer in list(model.named_modules()):
            if isinstance(layer, ScaledLinear):
                model.set_submodule(name, plain_linear(layer, trained=layer.matrix.requires_grad))
        for norm in norms_of(model):
            model.get_submodule(norm).requires_grad_(True)
        model.changed()
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        found = [layer for layer in model.modules() if isinstance(layer, ScaledLinear)]
        return (
            f"scale_vectors: {len(found)} matrices have {sum(len(one.rows) for one in found)} scales of what they read"
        )
