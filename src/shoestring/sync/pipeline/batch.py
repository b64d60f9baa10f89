"""What goes into a step of a pipeline, and what comes out."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """inputs: what the first part takes, token ids [B, T].
    targets: what the last part takes beside the hidden states.
    """

    inputs: Tensor
    targets: Tensor

    @property
    def tokens(self) -> int:
        return self.inputs.numel()


@dataclass(frozen=True)
class StepReport:
    """What a step came to.

    step: its number, from 0.
    loss: mean over the batch, in the weights before the step, nats.
    gradient_norm, gradient_norm_1: the 2-norm and the 1-norm of the whole model's gradient, before clipping.
    tokens: of the batch.
    """

    step: int
    loss: float
    gradient_norm: float
    gradient_norm_1: float
    tokens: int
