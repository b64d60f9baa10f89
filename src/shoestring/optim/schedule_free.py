"""Schedule-Free AdamW: an average of the weights in the place of a falling learning rate."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from annotated_types import Interval
from schedulefree import AdamWScheduleFree
from torch import Tensor

from shoestring.method import Decay, Epsilon, NonNegative, Positive, Whole, method
from shoestring.optim.base import StatefulOptimizer

Share = Annotated[float, Interval(gt=0, lt=1)]


@method(
    "optim",
    name="schedule_free",
    paper="The Road Less Scheduled, arXiv:2405.15682",
    claim="no stopping time to fix, and state-of-the-art beside schedules, from convex problems to large-scale deep "
    "learning",
    cost="8 bytes of state a float32 parameter, 12 of any other; the weights are swapped before each evaluation",
)
class ScheduleFreeAdamW(AdamWScheduleFree, StatefulOptimizer):
    """AdamW whose gradients are taken at y, between the fast weights z and their average x, which is what is kept.

    Defazio et al. (2024), arXiv:2405.15682; the step is that of the authors' library, `schedulefree`. With gradient g
    taken at y, at step t = 1, 2, ...:

        v <- beta2 v + (1 - beta2) g^2;   d = g / (sqrt(v / (1 - beta2^t)) + epsilon) + weight_decay y
        z <- z - lr d;   x <- (1 - c) x + c z;   y = (1 - beta1) z + beta1 x

    where c = w_t / (w_1 + ... + w_t), w_t = t^power (largest lr so far)^lr_power. lr rises over the first `warmup_steps`
    steps; leave that at 0 where a schedule warms up.

    The learning rate that belongs with it is constant after its warm-up: the average does what a decay would. Under a
    decay it averages weights that have stopped moving. It takes a larger lr than AdamW, one to ten times.

    The parameters hold y while training, from the first step on, and x between `eval()` and `train()`, which bring y back
    bit for bit: evaluating changes nothing. Call `eval()` before the model is evaluated or given away. The state is
    float32; under narrower weights y is kept in it as well, and they are rounded from it. Unlike the other optimisers
    of this package the library works in the gradients: after a step `.grad` of a float32 parameter is not the gradient.

    As z, and so x, are its own, an outer loop that moved the parameters would leave them behind: `DiLoCo` refuses it.

    warmup_steps: steps over which lr rises.
    power: exponent of the step in its weight of the average.
    lr_power: exponent of the largest learning rate so far in that weight.
    Raises: ValueError for a step between `eval()` and `train()`.
    """

    accepts = frozenset({"embedding", "head", "matrix", "vector"})
    state_holds_weights = True

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: Positive = 5e-3,
        beta1: Share = 0.9,
        beta2: Decay = 0.95,
        epsilon: Epsilon = 1e-8,
        weight_decay: NonNegative = 0.1,
        warmup_steps: Whole = 0,
        power: NonNegative = 0.0,
        lr_power: NonNegative = 2.0,
    ) -> None:
        AdamWScheduleFree.__init__(
            self,
            parameters,
            lr=lr,
            betas=(beta1, beta2),
            eps=epsilon,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            r=power,
            weight_lr_power=lr_power,
        )
        self.defaults["train_mode"] = True  # for a group that is added later
        self.train()

    @staticmethod
    def state_bytes(parameters: Iterable[Tensor]) -> int:
        """The memory that the state of these parameters takes while training: z and v, and y where it is not the
        parameter itself."""
        return sum((8 if p.dtype == torch.float32 else 12) * p.numel() for p in parameters)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient. Raises: ValueError for a closure, or after `eval()`."""
        if closure is not None:
            raise ValueError("schedule_free takes no closure: compute the gradients, then call step()")
        if not all(group["train_mode"] for group in self.param_groups):
            raise ValueError("schedule_free holds the weights to be kept: call train() before the next gradients")
        with self._in_float32():
            super().step()

    @torch.no_grad()
    def eval(self) -> None:
        """Put x, the weights to be judged and kept, in the parameters. y waits in the state."""
        for group in self.param_groups:
            toward_x = 1 - 1 / group["betas"][0]
            for parameter in group["params"] if group["train_mode"] else ():
                state = self.state.get(parameter, {})
                if "z" in state:
                    y = state.setdefault("y", parameter.clone())
                    parameter.copy_(torch.lerp(y, state["z"], toward_x))
            group["train_mode"] = False

    @torch.no_grad()
    def train(self) -> None:
        """Put y, at which gradients are taken, back in the parameters."""
        for group in self.param_groups:
            for parameter in group["params"] if not group["train_mode"] else ():
                state = self.state.get(parameter, {})
                if "y" in state:
                    parameter.copy_(state["y"])
                    if parameter.dtype == torch.float32:
                        del state["y"]
            group["train_mode"] = True

    @contextmanager
    def _in_float32(self) -> Iterator[None]:
        """Within it the groups hold a float32 y, kept in the state, for each parameter of another type."""
        own = [group["params"] for group in self.param_groups]
        for group in self.param_groups:
            group["params"] = [self._wide(parameter) for parameter in group["params"]]
        try:
            yield
        finally:
            for group, parameters in zip(self.param_groups, own, strict=True):
                for parameter, wide in zip(parameters, group["params"], strict=True):
                    if wide is not parameter:
                        parameter.copy_(wide)
                        wide.grad = None
                        del self.state[wide]
                group["params"] = parameters

    def _wide(self, parameter: Tensor) -> Tensor:
        if parameter.dtype == torch.float32 or parameter.grad is None:
            return parameter
        state = self.state[parameter]
        if "y" not in state:
            state["y"] = parameter.float()
        wide: Tensor = state["y"]
        wide.grad = parameter.grad.float()
        self.state[wide] = state  # the same dictionary: what the library puts there is the parameter's
        return wide
