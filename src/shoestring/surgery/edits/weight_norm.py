"""Weight normalisation: the rows of a matrix as a direction and a length, each learnt by itself."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.contract.role import VECTOR
from shoestring.errors import UsageError
from shoestring.method import method
from shoestring.surgery.plain_linear import plain_linear


class WeightNormalised(nn.Module):
    """y = (g / |v|) v x + b, with a length g and a direction v of each row.

    direction: [out, in]. gain: [out]. bias: [out] or None.
    """

    roles: ClassVar[dict[str, str]] = {"gain": VECTOR}

    def __init__(self, base: nn.Linear, direction: Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        trained = base.weight.requires_grad
        self.direction = nn.Parameter(direction, requires_grad=trained)
        self.gain = nn.Parameter(base.weight.detach().norm(dim=1), requires_grad=trained)
        self.bias = base.bias
        for marked in (self, self.direction):  # which rows are a head's, for optimisers
            if hasattr(base, "row_blocks"):
                setattr(marked, "row_blocks", base.row_blocks)  # noqa: B010 (mypy forbids the plain form)

    @property
    def weight(self) -> Tensor:
        """[out, in], as a plain layer has it."""
        return self.direction * (self.gain / self.direction.norm(dim=1))[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@method(
    "surgery",
    kind="edit",
    name="weight_norm",
    paper="Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural Networks, arXiv:1602.07868",
    claim="faster convergence of stochastic gradient descent, with less overhead than batch normalisation and no dependence among "
    "the examples of a batch",
    cost="a norm of every row a pass, and one number a row",
)
class WeightNorm:
    """Train each matrix of the layers as directions and lengths of its rows; folded, it is a plain matrix.

    Tim Salimans and Diederik P. Kingma, 2016, arXiv:1602.07868.

    w = g v / |v| for every row w of a matrix, g a number and v a vector. At first v = w and g = |w|, so that the model computes
    what it did; a row of zeros gets a random v, and g = 0.

    Different from the paper: no initialisation by data; routers and stacks of experts stay as they are.
    """

    needs: frozenset[str] = frozenset()

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The seed of the directions of rows of zeros. Raises: UsageError where no layer is plainly linear."""
        if not _layers(model):
            raise UsageError("weight_norm: this model has no plain linear layer")
        return Decision({"seed": evidence.seed})

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with its matrices as directions and lengths."""
        generator = torch.Generator().manual_seed(int(decision.values["seed"]))
        for name, layer in _layers(model):
            weight = layer.weight.detach()
            drawn = torch.randn(weight.shape, generator=generator).to(weight)
            silent = weight.norm(dim=1, keepdim=True) == 0
            model.set_submodule(name, WeightNormalised(layer, torch.where(silent, drawn, weight)))
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model of plain layers."""
        for name, layer in list(model.named_modules()):
            if isinstance(layer, WeightNormalised):
                model.set_submodule(name, plain_linear(layer, trained=layer.direction.requires_grad))
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        count = sum(isinstance(layer, WeightNormalised) for layer in model.modules())
        return f"weight_norm: {count} matrices are directions and lengths of their rows"


def _layers(model: LanguageModule) -> list[tuple[str, nn.Linear]]:
    """The plain linear layers within the model's layers, by name."""
    names: list[Any] = [matrix.name for matrix in model.anatomy().matrices()]
    found = [(name, model.get_submodule(name)) for name in names]
    return [(name, layer) for name, layer in found if type(layer) is nn.Linear]
