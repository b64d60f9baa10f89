"""OPT-AMSGrad: AMSGrad that already takes the step it expects to take next."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from shoestring.method import Decay, Epsilon, NonNegative, Positive, method
from shoestring.optim.base import StatefulOptimizer, float_gradients

Span = Annotated[int, Interval(ge=2, le=1000)]


@method(
    "optim",
    name="opt_amsgrad",
    paper="An Optimistic Acceleration of AMSGrad for Nonconvex Optimization, arXiv:1903.01435",
    claim="faster than AMSGrad where consecutive gradients are predictable; a practical speedup on several deep "
    "learning models",
    cost="about twice AdamW's passes over the weights per step; 20 bytes of state a parameter (more to extrapolate)",
)
class OptAMSGrad(StatefulOptimizer):
    """AMSGrad with an optimistic second step along a prediction of the next gradient.

    Wang, Li, Karimi & Li (2021), arXiv:1903.01435. For a parameter w_t with gradient g_t, m_t being what
    g_t had been predicted to be (m_1 = 0), and products, roots and maxima taken element by element:

        theta_t = beta1 theta_{t-1} + (1 - beta1) g_t
        v_t = beta2 v_{t-1} + (1 - beta2) (g_t - m_t)^2;   vhat_t = max(vhat_{t-1}, v_t)
        h_{t+1} = beta1 theta_{t-1} + (1 - beta1) m_{t+1}
        w_{t+1/2} = w_{t-1/2} - lr theta_t / (sqrt(vhat_t) + epsilon)
        w_{t+1} = w_{t+1/2} - lr h_{t+1} / (sqrt(vhat_t) + epsilon)

    There is no bias correction (the authors' code adds Adam's): v_1 holds all of g_1, and the maximum keeps it.

    prediction: 'last', the default, is m_{t+1} = g_t, the usual guess of optimistic learning; h_{t+1} is theta_t then.
    'extrapolation' is the paper's, after Scieur et al. (2016), arXiv:1606.04133: of the last `span` gradients
    x_1 ... x_s of a parameter and their differences U = [x_2 - x_1, ...], m_{t+1} = sum c_i x_{i+1} with c
    proportional to (U^T U / |U^T U| + regularization I)^-1 1 and of sum 1; until there are `span`, it is 'last'.

    Ours: epsilon outside the root, as in the authors' code; decoupled weight decay of w_{t-1/2}, where the
    paper has none; gradients extrapolated, where the authors' code extrapolates weights and takes a second gradient
    there; U^T U over its Frobenius norm, which makes `regularization` free of the gradient's unit. What is kept
    is the displacement w_t - w_{t-1/2} rather than w_{t-1/2}, so that weights changed from outside stay changed.

    span: gradients that the extrapolation looks back on.
    regularization: of the extrapolation's coefficients; more takes them nearer to equal.
    """

    accepts = frozenset({"embedding", "head", "matrix", "vector"})

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: Positive = 3e-3,
        beta1: Decay = 0.9,
        beta2: Decay = 0.99,
        epsilon: Epsilon = 1e-8,
        weight_decay: NonNegative = 0.1,
        prediction: Literal["last", "extrapolation"] = "last",
        span: Span = 5,
        regularization: Positive = 1e-3,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "beta1": beta1, "beta2": beta2, "epsilon": epsilon}
        defaults |= {"weight_decay": weight_decay, "prediction": prediction}
        defaults |= {"span": span, "regularization": regularization}
        super().__init__(parameters, defaults)

    @staticmethod
    def state_bytes(parameters: Iterable[Tensor]) -> int:
        """The memory that the state takes: theta, v, vhat, the prediction and the displacement, all float32."""
        return sum(20 * parameter.numel() for parameter in parameters)

    def move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One step of these parameters."""
        lr, beta1, beta2 = group["lr"], group["beta1"], group["beta2"]
        gradients = float_gradients(parameters)
        theta, variance, peak, predicted, ahead = (
            self.moments(parameters, key) for key in ("momentum", "variance", "peak", "prediction", "ahead")
        )
        surprise = torch._foreach_sub(gradients, predicted)
        torch._foreach_mul_(variance, beta2)
        torch._foreach_addcmul_(variance, surprise, surprise, value=1 - beta2)
        torch._foreach_maximum_(peak, variance)
        divisors = torch._foreach_sqrt(peak)
        torch._foreach_add_(divisors, group["epsilon"])

        torch._foreach_copy_(predicted, self._predict(parameters, gradients, group))
        torch._foreach_mul_(theta, beta1)
        jumps = list(torch._foreach_add(theta, predicted, alpha=1 - beta1))
        torch._foreach_add_(theta, gradients, alpha=1 - beta1)
        torch._foreach_div_(jumps, divisors)
        torch._foreach_mul_(jumps, -lr)

        # from w_t back to w_{t-1/2}, decay there, the step of theta, and the jump ahead: one rounding of the weight
        shrink = lr * group["weight_decay"]
        changes = list(torch._foreach_mul(ahead, shrink - 1))
        if shrink:
            torch._foreach_add_(changes, parameters, alpha=-shrink)
        torch._foreach_addcdiv_(changes, theta, divisors, value=-lr)
        torch._foreach_add_(changes, jumps)
        torch._foreach_add_(parameters, changes)
        torch._foreach_copy_(ahead, jumps)

    def _predict(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """What the next gradients are expected to be."""
        if group["prediction"] == "last":
            return gradients
        span, predictions = group["span"], []
        for parameter, gradient in zip(parameters, gradients, strict=True):
            state = self.state[parameter]
            if "history" not in state:
                state["history"] = gradient.new_zeros((span, *gradient.shape))
                state["step"] = 0
            place = state["step"] % span
            state["history"][place].copy_(gradient)
            state["step"] += 1
            if state["step"] < span:
                predictions.append(gradient)
            else:
                # a ring: the oldest gradient is the one to be overwritten next
                ordered = torch.cat([state["history"][place + 1 :], state["history"][: place + 1]])
                predictions.append(extrapolate(ordered, group["regularization"]))
        return predictions


def extrapolate(sequence: Tensor, regularization: float) -> Tensor:
    """The point that a sequence [s, ...], s >= 2, oldest first, seems to run to: regularised minimal polynomial extrapolation."""
    rows = sequence.flatten(1)
    differences = rows[1:] - rows[:-1]
    gram = differences @ differences.T
    gram = gram / torch.linalg.matrix_norm(gram).clamp_min(torch.finfo(gram.dtype).tiny)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram + regularization * eye, gram.new_ones(len(gram)))
    return ((weights / weights.sum()) @ rows[1:]).view_as(sequence[0])
