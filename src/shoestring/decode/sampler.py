"""Choosing the next token from its logits: greedy, or at random after temperature, top-k and top-p.

Each step is a pure function of logits [vocabulary]; a token that may not be chosen has the logit -inf. Chance comes
from the generator that is passed, and from nowhere else.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from shoestring.method import Count, NonNegative, Seed, Whole


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are chosen, and how many.

    temperature: divides the logits; 0 = greedy. top_k: how many of the likeliest tokens may be chosen; 0 = all. top_p:
    the share of probability that the likeliest tokens must reach together (nucleus sampling: The Curious Case of Neural
    Text Degeneration, arXiv:1904.09751); 1 = all. They apply in this order. seed: of the generator. max_new_tokens:
    where to stop. Raises: ValueError for a value out of range.
    """

    temperature: NonNegative = 0.8
    top_k: Whole = 0
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    seed: Seed = 0
    max_new_tokens: Count = 256

    def __post_init__(self) -> None:
        for name, within, limits in (
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
        ):
            if not within:
                raise ValueError(f"{name} must be {limits}, not {getattr(self, name)}")


def greedy(logits: Tensor) -> int:
    """The likeliest token; of equals, the first."""
    return int(logits.argmax())


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """The logits with all but the `k` likeliest tokens ruled out; of equals, the first are kept. 0 = keep all."""
    if k == 0:
        return logits
    return _keep(logits, logits.argsort(descending=True, stable=True)[:k])


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The logits with all tokens ruled out but the fewest likeliest whose probability together is at least `p`."""
    if p == 1:
        return logits
    order = logits.argsort(descending=True, stable=True)
    mass = logits.double().softmax(-1)[order].cumsum(-1)
    # those whose mass falls short, and the one that makes it up
    return _keep(logits, order[: int((mass < p).sum()) + 1])


def _keep(logits: Tensor, tokens: Tensor) -> Tensor:
    kept = torch.full_like(logits, -torch.inf)
    kept[tokens] = logits[tokens]
    return kept


def sample(logits: Tensor, settings: SamplingConfig, generator: torch.Generator) -> int:
    """A token drawn from `logits` [vocabulary] as `settings` say. generator: on the device of the logits."""
    if settings.temperature == 0:
        return greedy(logits)
    kept = keep_top_p(keep_top_k(logits.float() / settings.temperature, settings.top_k), settings.top_p)
    return int(torch.multinomial(kept.softmax(-1), 1, generator=generator))
