"""Layers that are replaced by, or come as, the weights of another layer with a low-rank matrix beside each."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract import cost
from shoestring.contract.cost import matrix_product
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.lending import Borrower
from shoestring.contract.model import LanguageModule
from shoestring.contract.role import ADAPTER, VECTOR
from shoestring.errors import UsageError
from shoestring.method import Count, Whole, method
from shoestring.surgery.edits.compactifai import plain_linear
from shoestring.surgery.edits.drop_layers import influences
from shoestring.surgery.observe import observe

Begin = Literal["nothing", "stack"]
Norm = Literal["rms", "fit"]


class SharedLinear(Borrower):
    """y = g * (W x + U D x) + s, with W the matrix of another layer, its bias included.

    lender, part: where W is. base: the layer that stood here, for its sizes. down: D [rank, in]. up: U [out, rank].
    gain: g [out]. shift: s [out], or None.
    """

    roles: ClassVar[dict[str, str]] = {"down": ADAPTER, "up": ADAPTER, "gain": VECTOR, "shift": VECTOR}

    def __init__(
        self,
        lender: nn.Module,
        part: str,
        base: nn.Linear,
        *,
        down: Tensor,
        up: Tensor,
        gain: Tensor,
        shift: Tensor | None = None,
    ) -> None:
        super().__init__(lender, part)
        self.in_features, self.out_features = base.in_features, base.out_features
        trained = base.weight.requires_grad
        self.down, self.up, self.gain = (nn.Parameter(each, requires_grad=trained) for each in (down, up, gain))
        self.shift = None if shift is None else nn.Parameter(shift, requires_grad=trained)
        self._blocks = getattr(base, "row_blocks", None)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says: x [..., in] -> [..., out]."""
        found: Tensor = self.lent(x)
        added = nn.functional.linear(nn.functional.linear(x, self.down), self.up)
        made = (found + added) * self.gain.to(found.dtype)
        return made if self.shift is None else made + self.shift

    def flops(self, tokens: int, backward: bool = False, inputs: bool = True) -> int:
        """As `contract.cost.linear`."""
        low = matrix_product(self.down, tokens, backward, inputs)
        inside = inputs or self.down.requires_grad
        return (
            cost.linear(self.lent, tokens, backward, inputs) + low + matrix_product(self.up, tokens, backward, inside)
        )

    @property
    def weight(self) -> Tensor:
        """[out, in]: g (W + U D), as a plain layer has it. Raises: UsageError where the other layer has no one matrix now."""
        lent: Any = self.lent
        shared = lent.computed_weight() if hasattr(lent, "computed_weight") else getattr(lent, "weight", None)
        if shared is None:
            raise UsageError(f"{type(lent).__name__} computes more than one matrix can, so a layer that shares it does")
        made: Tensor = (shared + self.up @ self.down) * self.gain[:, None]
        return made

    @property
    def bias(self) -> Tensor | None:
        """[out]: g b + s; None where nothing is added."""
        lent: Any = self.lent
        shared = lent.computed_bias() if hasattr(lent, "computed_bias") else getattr(lent, "bias", None)
        if shared is None:
            return self.shift
        scaled: Tensor = self.gain * shared
        return scaled if self.shift is None else scaled + self.shift

    def plain(self) -> nn.Linear:
        """A layer of its own that computes the same."""
        bias = self.bias
        layer = plain_linear(self.weight.detach(), None if bias is None else nn.Parameter(bias.detach()))
        if self._blocks is not None:
            for marked in (layer, layer.weight):
                setattr(marked, "row_blocks", self._blocks)  # noqa: B010 (mypy forbids the plain form)
        return layer.train(self.training)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={len(self.down)}, of {self.part}"
        )


@method(
    "surgery",
    kind="edit",
    name="flexigpt",
    paper="FlexiGPT: Pruning and Extending Large Language Models with Low-Rank Weight Sharing, arXiv:2501.14713",
    claim="the best of 5 of 6 benchmarks at 30 % fewer parameters and of 6 at 40 %; extended models gain on 6 of 6 with about "
    "0.3 % more tokens",
    cost="two passes over the calibration text; the eigenvalues of a matrix for each pair of a layer that goes and one that stays",
)
class FlexiGPT:
    """Replace the least important layers by the weights of others, each with low-rank matrices of its own.

    James Seale Smith et al., 2025, arXiv:2501.14713.

    Layers of the least Block Influence (`drop_layers`) go. One that goes, i, computes with the matrices W_j of one that stays, j:

        W_i ~ g (W_j + U D),   U D = the best matrix of rank r for W_i - W_j, by its singular value decomposition

    and j is that whose squared errors |W_i - W_j - U D|^2, of all matrices together, are the least. Output features are normed by
    a gain each. With y = W_i x and z = (W_j + U D) x over what the matrix reads of the calibration text, by 'rms' g_k = rms(y_k) /
    rms(z_k), so that features are as large as they were; by 'fit' g_k = E[y_k z_k] / E[z_k^2], the least squared error, so that
    those which the shared matrix does not know are small. U, D and g are trained. Vectors (norms, biases) stay those of layer i.
    Parameters fall; operations rise a little, as no layer is left out.

    `more` extends instead: copies of layers stand behind them and share their weights, with D random, U = 0. By 'nothing', g = 0
    of what writes to the residual stream, so that the model computes what it did; by 'stack', g = 1.

    Different from the paper: its formula of the output normalisation could not be read. Here it is a gain of each output feature
    of each matrix, with fixed statistics, so that a folded model is plain. Folded, it is as large as before. Only matrices are
    shared.

    count: layers that are replaced. layers: their numbers, in place of `count`. more: layers that come, evenly between the first
    and the last, in place of both. rank: r. norm: as above. begin: what a layer that comes begins as.
    """

    needs: frozenset[str]

    def __init__(
        self,
        *,
        count: Whole = 0,
        layers: tuple[Whole, ...] = (),
        more: Whole = 0,
        rank: Count = 16,
        norm: Norm = "fit",
        begin: Begin = "nothing",
    ) -> None:
        if bool(count) + bool(layers) + bool(more) != 1:
            raise ValueError("flexigpt: give one of count, layers (the numbers of those that go) and more")
        if len(set(layers)) != len(layers):
            raise ValueError(f"flexigpt: layers names one twice: {list(layers)}")
        self.count, self.layers, self.more, self.rank, self.begin = count, layers, more, rank, begin
        self.norm: Norm = norm
        self.needs = frozenset[str]() if more else frozenset({"text"})

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """Which layers share whose weights, and the first tensors of each. Raises: UsageError where that cannot be."""
        return self._extension(model, evidence.seed) if self.more else self._replacement(model, evidence)

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model whose layers share."""
        values, anatomy = decision.values, model.anatomy()
        if values["copied"]:
            anatomy.copy_layers(values["copied"])
        for number, of in values["shared"]:
            layer, lender = (model.get_submodule(anatomy.layers[place]) for place in (number, of))
            for part in values["parts"][str(number)]:
                base = layer.get_submodule(part)
                if type(base) is not nn.Linear:
                    raise UsageError(f"flexigpt: {part} of layer {number} is no plain matrix")
                key = f"{number}.{part}."
                own = {
                    name.removeprefix(key): tensor.to(base.weight, copy=True)
                    for name, tensor in decision.tensors.items()
                    if name.startswith(key)
                }
                layer.set_submodule(part, SharedLinear(lender, part, base, **own))
        model.changed()
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model of plain matrices that computes the same, each layer with its own."""
        found = {name: module.plain() for name, module in model.named_modules() if isinstance(module, SharedLinear)}
        for name, layer in found.items():
            model.set_submodule(name, layer)
        model.changed()
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        pairs = ", ".join(f"{number} those of {of}" for number, of in decision.values["shared"])
        numbers = sum(parameter.numel() for parameter in model.parameters())
        return f"flexigpt: of layers that share weights at rank {self.rank}, {pairs}: {numbers:,} parameters"

    def _replacement(self, model: LanguageModule, evidence: Evidence) -> Decision:
        anatomy = model.anatomy()
        total, spent = len(anatomy.layers), NOTHING
        if max(self.count, len(self.layers)) >= total or any(number >= total for number in self.layers):
            asked = f"layers {list(self.layers)}" if self.layers else f"{self.count} layers"
            raise UsageError(f"flexigpt: {asked} cannot be replaced in a model that has {total}, numbered from 0")
        gone = sorted(self.layers)
        if self.count:
            found, spent = influences(model, anatomy, evidence)
            gone = sorted(sorted(range(total), key=lambda number: found[number])[: self.count])
        plain = [_matrices(model.get_submodule(name)) for name in anatomy.layers]
        moments, took = _moments(model, evidence, gone)
        shared, parts, tensors = list[list[int]](), dict[str, list[str]](), dict[str, Tensor]()
        for number in gone:
            own = plain[number]
            able = [of for of in range(total) if of not in gone and own and _shapes(plain[of]) == _shapes(own)]
            if not able:
                raise UsageError(f"flexigpt: no layer that stays has plain matrices of the shapes of layer {number}")
            of = min(
                able, key=lambda of: sum(tail(own[part].weight - plain[of][part].weight, self.rank) for part in own)
            )
            shared.append([number, of])
            parts[str(number)] = list(own)
            for part, base in own.items():
                made = _begun(base, plain[of][part], self.rank, self.norm, moments[f"{anatomy.layers[number]}.{part}"])
                tensors |= {f"{number}.{part}.{key}": tensor for key, tensor in made.items()}
        return Decision({"copied": [], "shared": shared, "parts": parts}, tensors, spent + took)

    def _extension(self, model: LanguageModule, seed: int) -> Decision:
        anatomy = model.anatomy()
        total = len(anatomy.layers)
        if self.more > total:
            raise UsageError(f"flexigpt: {self.more} layers cannot come to a model that has {total}: at most as many")
        if self.begin == "nothing" and not anatomy.axes("width"):
            raise UsageError(
                "flexigpt: this model does not tell which matrices write to its residual stream, so that a layer could begin as "
                "nothing: give begin = stack"
            )
        writers = {one.name for axis in anatomy.axes("width") for one in axis.slices if one.dim == 0}
        copied = sorted({int(total / self.more * (place + 0.5)) for place in range(self.more)})
        generator = torch.Generator().manual_seed(seed)
        shared, parts, tensors = list[list[int]](), dict[str, list[str]](), dict[str, Tensor]()
        for place, number in enumerate(copied):
            at, own = number + place + 1, _matrices(model.get_submodule(anatomy.layers[number]))
            if not own:
                raise UsageError(f"flexigpt: layer {number} has no plain matrices to share")
            shared.append([at, at - 1])
            parts[str(at)] = list(own)
            for part, base in own.items():
                silent = self.begin == "nothing" and f"{anatomy.layers[number]}.{part}.weight" in writers
                rank = min(self.rank, *base.weight.shape)
                key = f"{at}.{part}"
                tensors[f"{key}.down"] = (
                    torch.randn(rank, base.in_features, generator=generator) / base.in_features**0.5
                )
                tensors[f"{key}.up"] = torch.zeros(base.out_features, rank)
                tensors[f"{key}.gain"] = torch.full((base.out_features,), float(not silent))
        return Decision({"copied": copied, "shared": shared, "parts": parts}, tensors)


def _matrices(layer: nn.Module) -> dict[str, nn.Linear]:
    """The plain matrices of a layer, by their names in it."""
    return {name: module for name, module in layer.named_modules() if type(module) is nn.Linear}


def _shapes(matrices: Mapping[str, nn.Linear]) -> dict[str, tuple[int, int, bool]]:
    return {name: (layer.in_features, layer.out_features, layer.bias is None) for name, layer in matrices.items()}


def _moments(model: LanguageModule, evidence: Evidence, layers: Sequence[int]) -> tuple[dict[str, Tensor], Charge]:
    """(the second moments [in, in] of what each matrix of these layers reads, what measuring took)."""
    every = model.anatomy().layers
    names = [f"{every[n]}.{part}" for n in layers for part in _matrices(model.get_submodule(every[n]))]
    found: dict[str, Tensor] = {}

    def look(name: str, inputs: Tensor) -> None:
        rows = inputs.flatten(0, -2).float()
        found[name] = found.get(name, 0) + (rows.T @ rows).cpu()

    spent = observe(model, evidence.text, names, look)
    return found, spent


def _begun(base: nn.Linear, lent: nn.Linear, rank: int, norm: Norm, moment: Tensor) -> dict[str, Tensor]:
    """The first tensors of a matrix that stands for `base`. moment: [in, in], of what it reads."""
    weight, other = (layer.weight.detach().float().cpu() for layer in (base, lent))
    left, values, right = torch.linalg.svd(weight - other, full_matrices=False)
    rank = min(rank, len(values))
    root = values[:rank].sqrt()
    up, down = left[:, :rank] * root, root[:, None] * right[:rank]
    made = other + up @ down
    there = ((made @ moment) * made).sum(1).clamp_min(1e-30)
    if norm == "rms":
        gain = (((weight @ moment) * weight).sum(1).clamp_min(0) / there).sqrt()
    else:
        gain = ((weight @ moment) * made).sum(1) / there
    found = {"down": down.contiguous(), "up": up.contiguous(), "gain": gain}
    if base.bias is not None:
        found["shift"] = base.bias.detach().float().cpu() - gain * lent.bias.detach().float().cpu()
    return found


@torch.no_grad()
def tail(matrix: Tensor, rank: int) -> float:
    """|M - M_r|^2: the sum of the squared singular values of a matrix [m, n] but for the r largest."""
    wide = matrix.detach().double()
    gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    return float(torch.linalg.eigvalsh(gram)[: max(0, len(gram) - rank)].clamp_min(0).sum())
