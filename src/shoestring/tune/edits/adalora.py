"""Low-rank adapters that share out a budget of ranks among the matrices while they train."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.budget.charge import Charge
from shoestring.contract.model import LanguageModule
from shoestring.contract.objective import At
from shoestring.contract.role import ADAPTER, VECTOR
from shoestring.method import Count, Decay, NonNegative, Positive, method
from shoestring.tune import matrix
from shoestring.tune.adapted import Adapted, product
from shoestring.tune.adapter_edit import CHOSEN, AdapterEdit
from shoestring.tune.peft_adapter import MatrixPart, PeftAdapter
from shoestring.tune.peft_low_rank import Factors, exported

Share = Annotated[float, Interval(ge=0, lt=1)]


class SingularLinear(Adapted):
    """y = base(x) + scale P diag(lambda) Q x, with P [out, rank], lambda [rank] and Q [rank, in] trained.

    sensitivity, uncertainty: running means of each parameter's importance and of how that varies, by the parameter's name.
    """

    roles: ClassVar = {"left": ADAPTER, "right": ADAPTER, "values": VECTOR}
    PARTS: ClassVar = ("left", "values", "right")

    def __init__(self, base: nn.Module, left: Tensor, values: Tensor, right: Tensor, scale: float) -> None:
        super().__init__(base)
        self.scale = scale
        self.left, self.values, self.right = nn.Parameter(left), nn.Parameter(values), nn.Parameter(right)
        for name in self.PARTS:
            for kind in ("sensitivity", "uncertainty"):
                self.register_buffer(f"{name}_{kind}", torch.zeros_like(getattr(self, name)))

    def adapt(self, x: Tensor, plain: Tensor) -> Tensor:
        return plain + F.linear(F.linear(x, self.right) * self.values, self.left) * self.scale

    def change(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W + scale P diag(lambda) Q."""
        return weight + self.scale * (self.left * self.values).float() @ self.right.float(), bias

    def added_flops(self, tokens: int, backward: bool, inputs: bool) -> int:
        rank, trained = len(self.values), self.trained
        right = product(trained, backward, inputs, tokens * self.in_features * rank)
        return right + product(trained, backward, trained or inputs, tokens * rank * self.out_features)

    @torch.no_grad()
    def look(self, smoothing: float, uncertainty: float) -> None:
        """Take the gradients that are there into the running means. smoothing, uncertainty: beta_1 and beta_2."""
        for name in self.PARTS:
            parameter: Tensor = getattr(self, name)
            if parameter.grad is None:
                continue
            mean, spread = getattr(self, f"{name}_sensitivity"), getattr(self, f"{name}_uncertainty")
            found = (parameter * parameter.grad).abs()
            mean.mul_(smoothing).add_(found, alpha=1 - smoothing)
            spread.mul_(uncertainty).add_((found - mean).abs(), alpha=1 - uncertainty)

    def scores(self) -> Tensor:
        """[rank]: the importance of each triplet of a column of P, a value and a row of Q."""
        left, values, right = (
            getattr(self, f"{n}_sensitivity") * getattr(self, f"{n}_uncertainty") for n in self.PARTS
        )
        found: Tensor = values + left.mean(0) + right.mean(1)
        return found

    @torch.no_grad()
    def pull(self, weight: float) -> int:
        """Add the gradient of weight (|P^T P - I|^2 + |Q Q^T - I|^2). Returns the operations."""
        rank = len(self.values)
        one = torch.eye(rank, device=self.left.device, dtype=self.left.dtype)
        for parameter, gradient in (
            (self.left, self.left @ (self.left.T @ self.left - one)),
            (self.right, (self.right @ self.right.T - one) @ self.right),
        ):
            if parameter.grad is not None:
                parameter.grad.add_(gradient, alpha=4 * weight)
        return 2 * 2 * rank * rank * (self.in_features + self.out_features)

    def extra_repr(self) -> str:
        return f"rank={len(self.values)}, scale={self.scale:g}"


@method(
    "tune",
    kind="edit",
    name="adalora",
    paper="Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, arXiv:2303.10512",
    claim="notable improvement over baselines, especially in the low budget settings, in language processing, question answering "
    "and generation",
    cost="as lora of rank first_rank, three times its parameters kept; 4 rank² (in + out) operations a step",
)
class AdaLoRA(AdapterEdit):
    """Train a singular value decomposition beside each matrix, and leave the values that matter least at zero.

        y = W x + (alpha / first_rank) P diag(lambda) Q x,   P [out, r],  lambda [r],  Q [r, in]

    Each step adds the gradient of regularisation (|P^T P - I|^2 + |Q Q^T - I|^2). The importance of a triplet is
    S = s(lambda) + mean_j s(P_j) + mean_j s(Q_j), where s(w) = I(w) U(w), I a running mean of |w dL/dw| and U one of its
    deviations. After a step, the values that are not among the b most important of all matrices are set to zero. With t the spent
    share of the budget, b falls by a cube from first_rank to rank values a matrix:

        b(t) = rank + (first_rank - rank) (1 - (t - start) / (1 - start - rest))^3   between `start` and 1 - rest.

    The paper counts t in steps, and takes the loss of the step into S with the regulariser's; here S is of the loss alone. P and Q
    start normal at 1 / sqrt(in or out) (the paper: Gaussian), lambda at zero: a tuned model starts as the one it is made of.

    rank: values a matrix, on average, that are left at the end.
    first_rank: values a matrix at the beginning; None: half as many again as `rank`.
    alpha: the scale of what is added, times first_rank.
    start: share of the budget before the first values go.
    rest: share at the end in which none go any more.
    every: steps between two allocations.
    smoothing: beta_1, of the running mean of importance.
    uncertainty: beta_2, of its deviations.
    regularisation: gamma, the weight of the pull towards orthogonal P and Q.
    targets: patterns of the names of the matrices ('*.qkv'); empty: all of the layers.
    """

    name: ClassVar[str] = "adalora"
    kind: ClassVar[type[Adapted]] = SingularLinear
    rate: ClassVar[float] = 2e-3

    def __init__(
        self,
        *,
        rank: Count = 8,
        first_rank: Count | None = None,
        alpha: Positive = 16.0,
        start: Share = 0.1,
        rest: Share = 0.3,
        every: Count = 1,
        smoothing: Decay = 0.85,
        uncertainty: Decay = 0.85,
        regularisation: NonNegative = 0.1,
        targets: tuple[str, ...] = (),
    ) -> None:
        first_rank = math.ceil(1.5 * rank) if first_rank is None else first_rank
        if first_rank < rank:
            raise ValueError(f"adalora: first_rank = {first_rank} is below rank = {rank}, and ranks only fall")
        if start + rest >= 1:
            raise ValueError(f"adalora: start = {start} and rest = {rest} leave no share in which ranks fall")
        super().__init__(targets)
        self.rank, self.first_rank, self.alpha = rank, first_rank, alpha
        self.start, self.rest, self.every = start, rest, every
        self.smoothing, self.uncertainty, self.regularisation = smoothing, uncertainty, regularisation

    def values(self) -> dict[str, Any]:
        return {"rank": self.first_rank, "scale": self.alpha / self.first_rank}

    def begin(self, base: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        inputs, outputs = matrix.sizes(base)
        left = torch.randn(outputs, self.first_rank, generator=generator) / math.sqrt(outputs)
        right = torch.randn(self.first_rank, inputs, generator=generator) / math.sqrt(inputs)
        return {"left": left, "right": right}

    def place(self, base: nn.Module, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> SingularLinear:
        left, right = tensors["left"], tensors["right"]
        middle = tensors.get("values")
        middle = left.new_zeros(left.shape[1]) if middle is None else middle
        return SingularLinear(base, left, middle, right, values["scale"])

    def kept(self, progress: float) -> float:
        """Values a matrix, on average, that are left at `progress`."""
        fallen = (progress - self.start) / (1 - self.start - self.rest)
        return self.rank + (self.first_rank - self.rank) * (1 - min(1.0, max(0.0, fallen))) ** 3

    def before_step(self, model: LanguageModule, at: At) -> Charge:
        """As `Stepped.before_step`: importance from the gradients, then the pull towards orthogonal factors."""
        flops = 0
        for layer in _layers(model):
            layer.look(self.smoothing, self.uncertainty)
            if self.regularisation:
                flops += layer.pull(self.regularisation)
        return Charge(flops=flops)

    @torch.no_grad()
    def after_step(self, model: LanguageModule, at: At) -> None:
        """As `Stepped.after_step`: the least important values are set to zero."""
        if at.progress < self.start or (at.step % self.every and at.progress < 1 - self.rest):
            return
        layers = _layers(model)
        scores = torch.cat([layer.scores() for layer in layers])
        stay = torch.zeros_like(scores, dtype=torch.bool)
        stay[scores.topk(min(len(scores), round(self.kept(at.progress) * len(layers)))).indices] = True
        for layer, mask in zip(layers, stay.split([len(layer.values) for layer in layers]), strict=True):
            layer.values.mul_(mask)

    def exported(self, model: LanguageModule, values: Mapping[str, Any], parts: Sequence[MatrixPart]) -> PeftAdapter:
        """As `AdapterEdit.exported`: as plain low-rank adapters, of the values that are left."""
        layers: dict[str, Any] = {name: model.get_submodule(name) for name in values[CHOSEN]}
        factors = {}
        for name, layer in layers.items():
            left = layer.values.detach() != 0
            left = left if left.any() else torch.ones_like(left)
            down = (layer.right * layer.values[:, None]).detach()[left]
            factors[name] = Factors(down, layer.left.detach()[:, left], layer.scale)
        transposed = any(matrix.is_transposed(layer.base) for layer in layers.values())
        return exported(factors, parts, stabilised=False, transposed=transposed)

    def shape(self) -> str:
        return f"adapters of {self.first_rank} singular values that become {self.rank} on average"


def _layers(model: nn.Module) -> list[SingularLinear]:
    return [module for module in model.modules() if isinstance(module, SingularLinear) and module.trained]
