"""DiLoCo: workers take many steps by themselves, then move together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import nn

from shoestring.config import Choice
from shoestring.errors import UsageError
from shoestring.method import Count, Decay, Fraction, Positive, Whole, method
from shoestring.sync.codec import CODEC
from shoestring.sync.diloco import DiLoCo
from shoestring.sync.feedback import ErrorFeedback, Held
from shoestring.sync.fragments import Fragments
from shoestring.sync.outer import DILOCO, OuterSGD
from shoestring.sync.transport.base import Transport


@method(
    "sync",
    kind="outer loop",
    name="diloco",
    paper="DiLoCo: Distributed Low-Communication Training of Language Models, arXiv:2311.08105",
    claim="on C4 with 8 workers as good as fully synchronous optimisation, with 500 times less communication",
    cost="two float32 copies of the weights beside the model, a third for error feedback",
)
@dataclass(frozen=True, kw_only=True)
class DiLoCoLoop:
    """Local steps with any inner optimiser, then a step of Nesterov SGD on the average of what the workers moved.

    Douillard et al. (2023), arXiv:2311.08105: every H inner steps worker i has delta_i = global - local_i; all take
    global <- OuterSGD(global, mean_i delta_i) and begin the next round there. With `fragments` above one and `overlap` it is
    Streaming DiLoCo (Douillard et al. 2025, arXiv:2501.18512): see `DiLoCo` for the formulas.

    every: inner steps between two exchanges of a fragment, H. lr, momentum: of the outer Nesterov SGD. codec: how matrices
    are packed for the link. average_codec: how the averages are that go back where they travel apart ('scatter', see
    `exchange`); none: as codec. feedback: decay of error feedback, 0 for none. held: where what it feeds back waits, see
    `ErrorFeedback`. fragments, pattern: the parts of the model that are exchanged by turns. overlap: inner steps that go on
    while an exchange is under way, tau. mixing: the share of a worker's own weights that it keeps at an overlapped merge,
    alpha. average: 'gather', each worker sends all it has to every other; 'scatter', each averages a part of the model for
    all; 'auto', gather for two workers and scatter for more.
    """

    every: Count = 30
    lr: Positive = DILOCO.lr
    momentum: Decay = DILOCO.momentum
    codec: Annotated[Choice, CODEC] = field(default_factory=CODEC.choice)
    average_codec: Annotated[Choice, CODEC] | None = None
    feedback: Fraction = 0.0
    held: Held = "accumulator"
    fragments: Count = 1
    pattern: Literal["strided", "sequential"] = "strided"
    overlap: Whole = 0
    mixing: Fraction = 0.5
    average: Literal["auto", "gather", "scatter"] = "auto"

    def __post_init__(self) -> None:
        if self.held == "weights" and not self.feedback:
            raise UsageError("held = 'weights' says where error feedback waits, and feedback = 0 is none")
        if self.average == "gather" and self.average_codec is not None:
            raise UsageError("average = 'gather' sends no averages, so there is nothing that average_codec would pack")
        if self.overlap >= self.every:
            raise UsageError(
                f"overlap = {self.overlap} must be below every = {self.every}: one exchange ends before the next"
            )

    @property
    def gap(self) -> int:
        """The most steps from one exchange's start to the next one's merge."""
        return -(-self.every // self.fragments) + self.overlap

    def attach(
        self,
        model: nn.Module,
        inner: torch.optim.Optimizer | None,
        transport: Transport | None,
        *,
        roles: Mapping[str, str],
        kind: type[DiLoCo] = DiLoCo,
    ) -> DiLoCo:
        """The outer loop of one worker around `model`, which `inner` trains and whose weights are the first global ones.

        kind: of the loop: another where a worker is several processes.
        """
        codec: Any = self.codec.build()
        average_codec: Any = None if self.average_codec is None else self.average_codec.build()
        return kind(
            model,
            inner,
            every=self.every,
            codec=codec,
            feedback=ErrorFeedback(self.feedback, self.held) if self.feedback else None,
            transport=transport,
            outer=OuterSGD(self.lr, self.momentum),
            fragments=Fragments("whole" if self.fragments == 1 else self.pattern, self.fragments),
            overlap=self.overlap,
            mixing=self.mixing,
            average=self.average,
            average_codec=average_codec,
            roles=roles,
        )
