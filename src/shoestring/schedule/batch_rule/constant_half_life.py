"""beta2 whose half-life in tokens stays what it was."""

from dataclasses import dataclass, replace
from typing import ClassVar

from shoestring.errors import UsageError
from shoestring.method import Count, NonNegative, method
from shoestring.schedule.batch_rule.rule import BatchSettings, ratio, with_lr


@method(
    "schedule",
    kind="batch rule",
    name="constant_half_life",
    paper="Small Batch Size Training for Language Models: When Vanilla SGD Works, and Why Gradient Accumulation Is "
    "Wasteful, arXiv:2507.07101",
    claim="small batches, down to one sequence, train stably, are more robust to settings, and do as well or better per FLOP",
    cost="none",
)
@dataclass(frozen=True, kw_only=True)
class ConstantHalfLife:
    """Adam's second moment remembers as many tokens at any batch.

    Marek et al. (2025), arXiv:2507.07101: hold beta2's half-life fixed in tokens, not beta2. With batch b and reference b0:

        beta2' = beta2^(b / b0),   lr' = lr (b / b0)^lr_exponent

    To first order in 1 - beta2 this is the rule of `square_root` for beta2, but it stays in (0, 1) at any size. beta1 and
    epsilon stay. The paper has it for Adam; for the others of `optimizers`, whose beta2 is a second moment's too, it is our
    reading. Under Muon it is for what the fallback moves.

    reference: sequences a step at which the settings were tuned. lr_exponent: ours, 0 by default, as the paper's rule is about
    beta2 alone; 0.5 is the root.

    Raises: UsageError where beta2 is not in (0, 1), or a batch not above zero.
    """

    optimizers: ClassVar[frozenset[str]] = frozenset(
        {"adamw", "adam_mini", "adamp", "frugal", "lamb", "muon", "muon_hypersphere", "opt_amsgrad", "schedule_free"}
    )

    reference: Count
    lr_exponent: NonNegative = 0.0

    def __call__(self, settings: BatchSettings, batch: float) -> BatchSettings:
        larger = ratio(batch, self.reference)
        scaled = with_lr(settings, larger**self.lr_exponent)
        if settings.beta2 is None:
            return scaled
        if not 0 < settings.beta2 < 1:
            raise UsageError(f"only a beta in (0, 1) has a half-life, not {settings.beta2}")
        return replace(scaled, beta2=settings.beta2**larger)
