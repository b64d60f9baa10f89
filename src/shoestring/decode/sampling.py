"""How the next token is chosen from its logits.

The order is that of transformers' and vLLM's processors: bias and penalties, temperature, top-k, min-p, top-p, then one draw. Each
step is a pure function of logits [V]; a token that may not be chosen has the logit -inf.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Protocol

import torch
from annotated_types import Interval
from torch import Tensor

from shoestring.method import Fraction, NonNegative, Positive, Seed, Whole

CANDIDATES = 256
"""Tokens that are first looked at where the likeliest are to reach a share of probability."""

Penalty = Annotated[float, Interval(ge=-2, le=2)]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    temperature: divides the logits; 0 takes the likeliest token, of equals the first.
    top_k: how many of the likeliest tokens may be chosen; 0: all.
    top_p: the share of probability that the likeliest tokens must reach together (nucleus sampling: The Curious Case of Neural
        Text Degeneration, arXiv:1904.09751); 1: all.
    min_p: the least probability, as a share of the likeliest token's (Turning Up the Heat: Min-p Sampling, arXiv:2407.01082).
    repetition_penalty: of a token that the prompt or the answer holds, a positive logit is divided by this, a negative one
        multiplied (CTRL, arXiv:1909.05858); 1: none.
    presence_penalty, frequency_penalty: taken from the logit of a token that the answer holds, once, or once for each time.
    logit_bias: added to the logits of these tokens.
    seed: of all draws.
    Raises: ValueError for a value out of range.
    """

    temperature: NonNegative = 0.8
    top_k: Whole = 0
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    min_p: Fraction = 0.0
    repetition_penalty: Positive = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: Seed = 0

    def __post_init__(self) -> None:
        for name, within, limits in (
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "from -2 to 2"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "from -2 to 2"),
        ):
            if not within:
                raise ValueError(f"{name} must be {limits}, not {getattr(self, name)}")

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is taken, of logits as they are."""
        return self.temperature == 0 and not self.changes_logits

    @property
    def changes_logits(self) -> bool:
        """Whether bias or penalties do something."""
        penalties = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        return bool(penalties or self.logit_bias)


class Constraint(Protocol):
    """What an answer may be: a schema, a regular expression, a list of choices."""

    def mask(self) -> Tensor | None:
        """[V] bool, the tokens that may come next; None: any."""
        ...

    def take(self, token: int) -> None:
        """This token was chosen."""
        ...

    def copy(self) -> "Constraint":
        """Another one at the same place, which goes on by itself."""
        ...


def penalised(logits: Tensor, settings: Sampling, prompt: Counter[int], answer: Counter[int]) -> Tensor:
    """The logits with bias and penalties, float32 [V]. prompt, answer: how often each token stands in them."""
    changed = logits.float().clone()
    if settings.repetition_penalty != 1:
        seen = torch.tensor(sorted(prompt.keys() | answer.keys()))
        if len(seen):
            own = changed[seen]
            by = settings.repetition_penalty
            changed[seen] = torch.where(own > 0, own / by, own * by)
    if answer and (settings.presence_penalty or settings.frequency_penalty):
        tokens, counts = torch.tensor(list(answer)), torch.tensor(list(answer.values()), dtype=torch.float32)
        changed[tokens] -= settings.presence_penalty + settings.frequency_penalty * counts
    for token, bias in settings.logit_bias.items():
        changed[token] += bias
    return changed


def greedy(logits: Tensor) -> int:
    """The likeliest token; of equals, the first."""
    return int(logits.argmax())


def likeliest(logits: Tensor, count: int) -> Tensor:
    """The `count` likeliest tokens [count], the likeliest first; of equals, the lower number first."""
    count = min(count, len(logits))
    least = logits.topk(count, sorted=False).values.min()
    among = (logits >= least).nonzero()[:, 0]  # of those that equal the last, topk takes any
    order = logits[among].argsort(descending=True, stable=True)[:count]
    return among[order]


def nucleus(logits: Tensor, p: float) -> Tensor:
    """The fewest likeliest tokens whose probability together is at least `p`, the likeliest first."""
    total, count = logits.double().logsumexp(0), CANDIDATES
    while True:
        tokens = likeliest(logits, count)
        mass = (logits[tokens].double() - total).exp().cumsum(0)
        # those whose mass falls short, and the one that makes it up
        fewest = int((mass < p).sum()) + 1
        if fewest <= len(tokens) or len(tokens) == len(logits):
            return tokens[:fewest]
        count *= 8


def allowed(logits: Tensor, settings: Sampling) -> Tensor | None:
    """The tokens that top-k, min-p and top-p leave, of logits after temperature, the likeliest first; None: all."""
    if settings.top_k == 0 and settings.min_p == 0 and settings.top_p == 1:
        return None
    kept: Tensor | None = None
    if settings.top_k:
        kept = likeliest(logits, settings.top_k)
    if settings.min_p:
        among = torch.arange(len(logits)) if kept is None else kept
        own = logits[among].double()
        among = among[own >= own.max() + torch.tensor(settings.min_p).double().log()]
        kept = among[logits[among].argsort(descending=True, stable=True)]
    if settings.top_p < 1:
        chosen = nucleus(logits if kept is None else logits[kept], settings.top_p)
        kept = chosen if kept is None else kept[chosen]
    return kept


def probabilities(logits: Tensor, settings: Sampling) -> Tensor:
    """float64 [V], what each token is drawn with, of logits after bias and penalties."""
    found = torch.zeros(len(logits), dtype=torch.float64)
    if settings.temperature == 0:
        found[greedy(logits)] = 1
        return found
    warm = logits.float() / settings.temperature
    kept = allowed(warm, settings)
    if kept is None:
        return warm.double().softmax(0)
    found[kept] = warm[kept].double().softmax(0)
    return found


def choose(logits: Tensor, settings: Sampling, chance: float) -> int:
    """A token, of logits [V] after bias and penalties. chance: a number in [0, 1), as `draws.draw` gives it."""
    if settings.temperature == 0:
        return greedy(logits)
    warm = logits.float() / settings.temperature
    kept = allowed(warm, settings)
    mass = (warm if kept is None else warm[kept]).double().softmax(0).cumsum(0)
    # the last sum may fall short of 1, and tokens of no probability end the list
    place = min(int(torch.searchsorted(mass, chance * float(mass[-1]), right=True)), len(mass) - 1)
    return place if kept is None else int(kept[place])


@dataclass(frozen=True)
class LogProbability:
    """token: whose. value: its log-probability, of the model's own logits. top: the likeliest tokens with theirs."""

    token: int
    value: float
    top: Sequence[tuple[int, float]] = ()


def log_probability(logits: Tensor, token: int, top: int) -> LogProbability:
    """The log-probability of a token and of the `top` likeliest, of the model's own logits [V]."""
    total = logits.double().logsumexp(0)
    best = likeliest(logits, top).tolist() if top else []
    value = float(logits[token].double() - total)
    return LogProbability(token, value, [(each, float(logits[each].double() - total)) for each in best])
