"""Low-rank adapters whose scale suits any rank."""

import math
from typing import ClassVar

from shoestring.method import Count, Positive, method
from shoestring.tune.edits.lora import LoRA


@method(
    "tune",
    kind="edit",
    name="rslora",
    paper="A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, arXiv:2312.03732",
    claim="with alpha / sqrt(rank) in place of alpha / rank, larger ranks learn better, at more cost in training and none in use",
    cost="as lora",
)
class RankStabilisedLoRA(LoRA):
    """LoRA with what it adds divided by the square root of the rank, so that gradients neither vanish nor explode with it.

        y = W x + (alpha / sqrt(rank)) B A x,   A [rank, in],  B [out, rank]

    rank: the inner size.
    alpha: the scale of what is added, times the square root of the rank.
    targets: patterns of the names of the matrices ('*.qkv'); empty: all of the layers.
    """

    name: ClassVar[str] = "rslora"
    stabilised: ClassVar[bool] = True

    def __init__(self, *, rank: Count = 8, alpha: Positive = 6.0, targets: tuple[str, ...] = ()) -> None:
        super().__init__(rank=rank, alpha=alpha, targets=targets)

    @property
    def scale(self) -> float:
        """Of what is added."""
        return self.alpha / math.sqrt(self.rank)
