"""How long requests wait for a server that is given arrivals, lengths of answers and pass times: formulas, no simulation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy
from numpy.typing import NDArray

from shoestring.errors import UsageError
from shoestring.method import Fraction, method

Numbers = NDArray[numpy.float64]

TAIL = 1e-12
"""Probability beyond which requests that arrive during one batch are not counted."""
STATES = 4096
"""Requests that may wait, at most, where a queue is worked out."""


@dataclass(frozen=True)
class ServiceTime:
    """Seconds of a batch of b requests whose longest answer has l tokens: start + each b + (step + beside b) l.

    start: of a batch. each: of a request in it, its prompt mostly. step: of a pass. beside: of a row in a pass.
    """

    start: float
    each: float
    step: float
    beside: float = 0.0

    def seconds(self, rows: int, tokens: Numbers) -> Numbers:
        """Of batches of so many rows, for each number of tokens of the longest answer."""
        return self.start + self.each * rows + (self.step + self.beside * rows) * tokens


@dataclass(frozen=True)
class Batching:
    """When a free server begins: with `least` requests at least, and `most` at most.

    Dynamic batching takes all that wait: least 1, most as many as there is room for. Fixed batching waits for just so many: least =
    most. Both 1: one after the other, the M/G/1 queue. elastic: an answer that is whole leaves at once, and does not wait for the
    longest of its batch.
    """

    least: int = 1
    most: int = 1
    elastic: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise UsageError(f"a batch has 1 or more requests, and not {self.least} to {self.most}")


@dataclass(frozen=True)
class Delay:
    """Means, in seconds: wait until a request is begun, total until its answer is there. busy: share of time that the server works.
    rows: of a batch. clipped: share of answers that the limit ends."""

    wait: float
    total: float
    busy: float
    rows: float
    clipped: float = 0.0


def clip(lengths: Sequence[float], limit: int) -> Numbers:
    """P(n) of answers that end at `limit` tokens at the latest, of P(n), n from 0 on."""
    whole = numpy.asarray(lengths, dtype=numpy.float64)
    if limit >= len(whole) - 1:
        return whole
    return numpy.append(whole[:limit], whole[limit:].sum())


def delay(rate: float, lengths: Sequence[float], service: ServiceTime, batching: Batching | None = None) -> Delay:
    """What requests wait that arrive at random, `rate` a second (a Poisson process).

    Exact for the model. The requests that wait as a batch ends are a Markov chain: of n, batch b = min(max(n, least), most) takes
    H seconds, in which Poisson(rate H) arrive. With the stationary distribution of that chain, the mean number that wait, at any
    time, is the mean area under the queue of a batch (and of the time before it in which too few wait) over its mean length.
    Little's law makes the mean wait of it. With one request at a time this is Pollaczek and Khinchine's rate E[S^2] / (2 (1 - rate
    E[S])).

    lengths: P(n), the probability of an answer of n tokens, n from 0 on.
    Raises: UsageError where more arrives than can be served, or the chances do not add up to 1.
    """
    batching = batching or Batching()
    chances = numpy.asarray(lengths, dtype=numpy.float64)
    if rate <= 0 or not len(chances) or (chances < 0).any() or abs(chances.sum() - 1) > 1e-6:
        raise UsageError("queueing needs a rate above 0, and chances of lengths that add up to 1")
    if rate * _least_each(chances, service, batching) >= 1:
        raise UsageError(f"{rate:g} requests a second are more than this server answers: the queue would grow for ever")
    batches = {size: _Batch(size, chances, service, rate) for size in range(batching.least, batching.most + 1)}
    queue = _stationary(batches, batching)
    area = length = worked = rows = inside = 0.0
    for waiting, chance in enumerate(queue.tolist()):
        lacking = max(0, batching.least - waiting)
        batch = batches[min(max(waiting, batching.least), batching.most)]
        left = max(0, waiting - batching.most)
        # while too few wait, one after the other comes
        idle_area = sum(range(waiting, batching.least)) / rate
        area += chance * (idle_area + left * batch.mean + rate * batch.square / 2)
        length += chance * (lacking / rate + batch.mean)
        worked += chance * batch.mean
        rows += chance * batch.size
        inside += chance * batch.size * (batch.own if batching.elastic else batch.mean)
    wait = area / length / rate
    return Delay(float(wait), float(wait + inside / rows), float(worked / length), float(rows))


class _Batch:
    """A batch of so many requests: the moments of its seconds, and how many arrive meanwhile."""

    def __init__(self, size: int, lengths: Numbers, service: ServiceTime, rate: float) -> None:
        self.size = size
        longest = numpy.diff(numpy.concatenate([[0.0], lengths.cumsum().clip(0, 1) ** size]))
        seconds = service.seconds(size, numpy.arange(len(lengths), dtype=numpy.float64))
        self.mean, self.square = float(longest @ seconds), float(longest @ seconds**2)
        self.own = float(lengths @ seconds)
        """Seconds until an answer of it is whole, on average."""
        self.arrivals = _poisson(rate * seconds, longest)


def _poisson(means: Numbers, weights: Numbers) -> Numbers:
    """P(k), k from 0 on, of a Poisson number whose mean is drawn with these weights."""
    most = float(means[weights > 0].max())
    count = min(STATES, int(most + 12 * math.sqrt(most) + 30))
    numbers = numpy.arange(count)
    factorials = numpy.concatenate([[0.0], numpy.cumsum(numpy.log(numpy.arange(1, count)))])
    found = numpy.zeros(count)
    for mean, weight in zip(means, weights, strict=True):
        if weight > 0:
            found += weight * numpy.exp(numbers * math.log(max(mean, 1e-300)) - mean - factorials)
    enough = int(numpy.searchsorted(found.cumsum(), found.sum() - TAIL)) + 1
    return found[:enough] / found[:enough].sum()


def _stationary(batches: dict[int, _Batch], batching: Batching) -> Numbers:
    """P(n) of the requests that wait as a batch ends."""
    states = 64
    while True:
        steps = numpy.zeros((states, states))
        for waiting in range(states):
            left = max(0, waiting - batching.most)
            coming = batches[min(max(waiting, batching.least), batching.most)].arrivals[: states - left]
            steps[waiting, left : left + len(coming)] = coming
            steps[waiting, -1] += 1 - coming.sum()
        equations = numpy.vstack([steps.T - numpy.eye(states), numpy.ones(states)])
        goal = numpy.zeros(states + 1)
        goal[-1] = 1
        found: Numbers = numpy.linalg.lstsq(equations, goal, rcond=None)[0].clip(0)
        if found[-max(1, states // 16) :].sum() < 1e-9:
            return found / found.sum()
        if states >= STATES // 2:
            raise UsageError("the queue is too near to its limit to be worked out: thousands of requests would wait")
        states *= 2


def _least_each(lengths: Numbers, service: ServiceTime, batching: Batching) -> float:
    """Seconds of a request in the largest batch, on average."""
    return _Batch(batching.most, lengths, service, 1e-9).mean / batching.most


@method(
    "decode",
    kind="plan",
    name="queueing",
    paper="A Queueing Theoretic Perspective on Low-Latency LLM Inference with Variable Token Length, arXiv:2407.05347",
    claim="a limit that touches a very small share of answers can shorten the wait a lot; models agree with simulations",
    cost="a linear system of the size of the queue for each limit and way of batching",
)
def plan_queue(
    rate: float,
    lengths: Sequence[float],
    service: ServiceTime,
    batchings: Sequence[Batching],
    limits: Sequence[int],
    *,
    clipped: Fraction = 0.05,
) -> tuple[Batching, int, Delay]:
    """The way of batching and the limit of tokens with the least mean time to an answer.

    Of equals, the higher limit. What cannot keep up is left out.

    rate: requests a second. lengths: P(n) of answers without a limit. batchings, limits: to choose from.
    clipped: the share of answers that a limit may end, at most.
    Returns: (batching, limit, what it gives). Raises: UsageError where none keeps up.
    """
    best: tuple[Batching, int, Delay] | None = None
    for limit in sorted(limits, reverse=True):
        share = float(numpy.asarray(lengths)[limit + 1 :].sum())
        if share > clipped:
            continue
        for batching in batchings:
            try:
                found = replace(delay(rate, clip(lengths, limit).tolist(), service, batching), clipped=share)
            except UsageError:
                continue
            if best is None or found.total < best[2].total * (1 - 1e-9):
                best = batching, limit, found
    if best is None:
        raise UsageError(
            f"no batching keeps up with {rate:g} requests a second while it clips at most {clipped:.0%} of the answers"
        )
    return best
