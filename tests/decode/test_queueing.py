"""Predicted delays against an event-driven simulation, and against the textbook where it has a formula."""

import random
from collections.abc import Sequence

import numpy
import pytest

from shoestring.decode.queueing import Batching, Delay, ServiceTime, clip, delay, plan_queue
from shoestring.errors import UsageError

SERVICE = ServiceTime(start=0.1, each=0.02, step=0.02, beside=0.004)
LONG = [0.0, *(0.8 / 20 for _ in range(20)), *(0.0 for _ in range(179)), 0.0, *(0.2 / 10 for _ in range(10))]
"""Most answers have up to 20 tokens, a fifth has 200 to 210."""


def simulate(
    rate: float, lengths: Sequence[float], service: ServiceTime, batching: Batching, requests: int, seed: int
) -> Delay:
    """Requests one by one: they come, wait for a free server and for enough others, and leave with their batch or before."""
    chance = random.Random(seed)
    clock, arrivals = 0.0, list[float]()
    for _ in range(requests):
        clock += chance.expovariate(rate)
        arrivals.append(clock)
    tokens = chance.choices(range(len(lengths)), lengths, k=requests)
    free, first, waited, total, worked, sizes = 0.0, 0, 0.0, 0.0, 0.0, list[int]()
    while first + batching.least <= requests:
        begin = max(free, arrivals[first + batching.least - 1])
        last = first
        while last < requests and arrivals[last] <= begin and last - first < batching.most:
            last += 1
        size, own = last - first, tokens[first:last]

        def took(longest: int, size: int = size) -> float:
            return float(service.seconds(size, numpy.array([longest], dtype=float))[0])

        free = begin + took(max(own))
        for at, count in zip(arrivals[first:last], own, strict=True):
            waited += begin - at
            total += (begin + took(count) if batching.elastic else free) - at
        worked += free - begin
        sizes.append(size)
        first = last
    return Delay(waited / first, total / first, worked / free, first / len(sizes))


WAYS = [
    (0.5, Batching()),
    (2.0, Batching(1, 8)),
    (2.0, Batching(1, 8, elastic=True)),
    (1.5, Batching(4, 4)),
    (2.5, Batching(3, 16)),
]


@pytest.mark.parametrize(("rate", "batching"), WAYS)
def test_predictions_are_what_a_simulation_finds(rate: float, batching: Batching) -> None:
    lengths = clip(LONG, 60).tolist()
    told = delay(rate, lengths, SERVICE, batching)
    runs = [simulate(rate, lengths, SERVICE, batching, 12_000, seed) for seed in range(4)]
    for name in ("wait", "total", "busy", "rows"):
        seen = [getattr(run, name) for run in runs]
        spread = 4 * float(numpy.std(seen, ddof=1)) / 2
        assert getattr(told, name) == pytest.approx(float(numpy.mean(seen)), abs=spread + 1e-9, rel=0.02), name


@pytest.mark.parametrize("rate", [0.1, 0.4, 0.7])
def test_one_at_a_time_is_pollaczek_and_khinchine(rate: float) -> None:
    lengths = clip(LONG, 60).tolist()
    seconds = SERVICE.seconds(1, numpy.arange(len(lengths), dtype=float))
    mean, square = float(lengths @ seconds), float(lengths @ seconds**2)
    told = delay(rate, lengths, SERVICE)
    assert told.wait == pytest.approx(rate * square / (2 * (1 - rate * mean)), rel=1e-6)
    assert told.total == pytest.approx(told.wait + mean, rel=1e-6)
    assert told.busy == pytest.approx(rate * mean, rel=1e-6)
    assert told.rows == pytest.approx(1)


def test_a_limit_on_few_answers_shortens_the_wait_of_all() -> None:
    rate = 0.5
    rare = [0.0, *(0.99 / 20 for _ in range(20)), *(0.0 for _ in range(379)), 0.01]
    free, limited = (delay(rate, clip(rare, limit).tolist(), SERVICE).wait for limit in (400, 40))
    assert limited < free / 2
    batching, limit, found = plan_queue(rate, rare, SERVICE, [Batching()], [20, 40, 400], clipped=0.02)
    assert (batching, limit, found.clipped) == (Batching(), 20, pytest.approx(0.01))
    assert plan_queue(rate, rare, SERVICE, [Batching()], [20, 40, 400], clipped=0.005)[1] == 400


def test_the_plan_is_the_best_of_those_that_keep_up() -> None:
    ways = [Batching(), Batching(1, 16), Batching(1, 16, elastic=True), Batching(8, 8)]
    lengths = clip(LONG, 60).tolist()
    for rate in (0.2, 2.0):
        batching, limit, found = plan_queue(rate, lengths, SERVICE, ways, [60])
        totals = {}
        for way in ways:
            try:
                totals[way] = delay(rate, lengths, SERVICE, way).total
            except UsageError:
                continue
        assert (batching, limit) == (min(totals, key=lambda way: totals[way]), 60)
        assert found.total == pytest.approx(min(totals.values()))
    assert len(totals) < len(ways)  # one at a time is too slow for the higher rate


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(UsageError, match="5 requests a second are more than this server answers"):
        delay(5.0, LONG, SERVICE)
    with pytest.raises(UsageError, match="chances of lengths that add up to 1"):
        delay(1.0, [0.5, 0.4], SERVICE)
    with pytest.raises(UsageError, match="and not 3 to 2"):
        Batching(3, 2)
    with pytest.raises(UsageError, match="no batching keeps up with 50 requests a second while it clips at most 5%"):
        plan_queue(50.0, LONG, SERVICE, [Batching()], [300])
