"""Rates measured, times foretold, budgets kept: what cannot be met is refused at once."""

import math
import random
import time

import pytest

from shoestring.config import build
from shoestring.decode import Request
from shoestring.decode.cache_budget import CacheConfig
from shoestring.serve.admission import Admission, Promise, RequestBudget, operations, read_budget, rows_of, within
from shoestring.serve.errors import ApiError
from shoestring.serve.fields import BudgetFields
from shoestring.serve.forecast import ForecastRow, forecast
from shoestring.serve.rates import Rates
from shoestring.serve.settings import Settings
from tests.decode.random_models import CONTEXT, native
from tests.serve.serving import client, service

FIRST = ((100, 0.11), (1, 0.011))
"""A pass takes 10 ms, and 1 ms for each place."""


def test_rates_are_the_line_through_the_passes() -> None:
    rates = Rates(FIRST)
    assert rates.line == pytest.approx((0.01, 0.001))
    assert Rates().line == (0, 0)
    assert not Rates().known
    chance = random.Random(0)
    for _ in range(300):  # the machine has become three times as slow
        places = chance.choice((1, 8, 64))
        rates.observe(places, 3 * (0.01 + 0.001 * places) * chance.uniform(0.9, 1.1))
    assert rates.line == pytest.approx((0.03, 0.003), rel=0.15)


def test_passes_of_one_size_leave_the_line_its_slope() -> None:
    rates = Rates(FIRST)
    for _ in range(500):
        rates.observe(1, 0.021)
    assert rates.seconds(1) == pytest.approx(0.021, rel=0.1)
    assert 0.0005 < rates.line[1] < 0.0015


@pytest.mark.parametrize(
    ("passes", "line"),
    [
        (((1, 1.0), (100, 0.5)), (0.75, 0.0)),  # nothing is faster for having more to do
        (((10, 0.01), (100, 1.0)), (0.0, 100.1 / 10100)),  # nor takes less than nothing
        (((5, 0.2), (5, 0.4)), (0.3, 0.0)),
    ],
)
def test_no_part_of_a_pass_takes_less_than_nothing(
    passes: tuple[tuple[int, float], ...], line: tuple[float, float]
) -> None:
    assert Rates(passes).line == pytest.approx(line)


def test_the_share_of_what_is_written() -> None:
    rates = Rates()
    assert rates.share == 1
    for _ in range(300):
        rates.observe_answer(10, 40)
    assert rates.share == pytest.approx(0.25, abs=0.01)


def one_by_one(rows: list[ForecastRow], rates: Rates, places: int, tokens: int) -> list[float]:
    """The forecast, a pass at a time."""
    left, ends, now = [ForecastRow(row.unread, row.left) for row in rows], [0.0] * len(rows), 0.0
    going, waiting = list(range(len(rows)))[:places], list(range(len(rows)))[places:]
    while going:
        room, size = tokens - sum(left[at].unread == 1 for at in going), 0
        for at in [*(at for at in going if left[at].unread == 1), *(at for at in going if left[at].unread > 1)]:
            took = 1 if left[at].unread == 1 else min(room, left[at].unread)
            if left[at].unread > 1:
                room -= took
            size += took
            left[at].unread -= took
            if took and not left[at].unread:
                left[at].unread = 1
                left[at].left -= 1
        now += rates.seconds(size)
        for at in [at for at in going if left[at].left <= 0]:
            ends[at] = now
            going.remove(at)
            if waiting:
                going.append(waiting.pop(0))
    return ends


def test_the_forecast_is_that_of_single_passes() -> None:
    rates = Rates(FIRST)
    assert forecast([], rates, 4, 64) == []
    assert forecast([ForecastRow(100, 10)], rates, 4, 512) == pytest.approx([0.11 + 9 * 0.011])
    assert forecast([ForecastRow(1000, 10)], rates, 4, 100) == pytest.approx([10 * 0.11 + 9 * 0.011])
    assert forecast([ForecastRow(1, 5)] * 3, rates, 2, 100) == pytest.approx(
        [5 * 0.012, 5 * 0.012, 5 * 0.012 + 5 * 0.011]
    )
    chance = random.Random(1)
    for _ in range(60):
        rows = [
            ForecastRow(chance.choice((1, 7, 90, 400)), chance.randrange(1, 60)) for _ in range(chance.randrange(1, 9))
        ]
        assert forecast(rows, rates, 3, 50) == pytest.approx(one_by_one(rows, rates, 3, 50), rel=0.1)


def request(size: int = 10, tokens: int = 20, samples: int = 1) -> Request:
    return Request(tuple(range(size)), max_new_tokens=tokens, samples=samples)


def refused(
    budget: RequestBudget, requests: list[Request], going: list[Promise] | None = None, queue: int = 8
) -> ApiError:
    with pytest.raises(ApiError) as found:
        Admission(Rates(FIRST), 4, 64, queue).check(budget, requests, going or [])
    return found.value


def test_a_deadline_is_taken_where_it_can_be_met() -> None:
    alone = 0.02 + 19 * 0.011  # the prompt, and the tokens after the first
    admission = Admission(Rates(FIRST), 4, 64, 8)
    admission.check(RequestBudget(seconds=alone * 1.01, least=20), [request()], [])
    error = refused(RequestBudget(seconds=alone * 0.99, least=20), [request()])
    assert (error.status, error.code, error.headers["x-should-retry"]) == (429, "budget_unreachable", "false")
    assert "it takes 0.229 s, with nobody else waiting" in error.message
    assert int(error.headers["retry-after"]) >= 1
    admission.check(RequestBudget(seconds=0.05, least=2), [request()], [])  # two tokens of it will do
    admission.check(RequestBudget(), [request()], [])


def test_others_before_it_count() -> None:
    going = [Promise([ForecastRow(1, 1000)])] * 4
    error = refused(RequestBudget(seconds=1.0, least=20), [request()], going)
    assert (error.status, error.code) == (429, "deadline")
    assert 13 <= int(error.headers["retry-after"]) <= 14  # 1,000 passes of four rows, and its own
    assert "x-should-retry" not in error.headers
    # the engine has room for another beside three
    Admission(Rates(FIRST), 4, 64, 8).check(RequestBudget(seconds=1.0, least=20), [request()], going[:3])


def test_a_promise_is_kept_to_whom_it_was_made() -> None:
    soon = time.monotonic() + 0.6
    promised = Promise([ForecastRow(1, 50)], soon, least=50)  # 50 passes of 11 ms
    admission = Admission(Rates(FIRST), 4, 64, 8)
    admission.check(RequestBudget(), [request(4, 20)], [promised])
    long = [request(60, 20), request(60, 20)]
    error = refused(RequestBudget(), long, [promised])
    assert (error.status, error.code) == (429, "deadline_of_another")
    admission.check(
        RequestBudget(), long, [Promise([ForecastRow(1, 50)], soon, least=50, written=50)]
    )  # it has what it was promised
    admission.check(RequestBudget(), long, [Promise([ForecastRow(1, 90)], soon, least=90)])  # that one is late anyhow


def test_the_queue_has_an_end() -> None:
    going = [Promise([ForecastRow(1, 10)])] * 11
    Admission(Rates(FIRST), 4, 64, 8).check(RequestBudget(), [request()], going)
    error = refused(RequestBudget(), [request()], [*going, going[0]])
    assert (error.status, error.code) == (429, "queue_full")
    assert error.headers["retry-after"] == "1"
    assert refused(RequestBudget(), [request(samples=13)]).status == 400


def test_budgets_of_tokens_and_operations_shorten_answers() -> None:
    model = native()
    (found,) = within(RequestBudget(tokens=16), [request()], model)
    assert found.max_new_tokens == 6
    first, second = within(RequestBudget(tokens=40), [request(samples=2), request(samples=2)], model)
    assert first.max_new_tokens == second.max_new_tokens == 5
    flops = operations([request()], 7, model)
    (found,) = within(RequestBudget(flops=flops), [request()], model)
    assert (found.max_new_tokens, found.flops) == (7, flops)
    (found,) = within(RequestBudget(flops=flops - 1), [request()], model)
    assert found.max_new_tokens == 6
    assert within(RequestBudget(seconds=3), [request()], model)[0].seconds == 3


def test_operations_are_those_that_an_engine_spends() -> None:
    from shoestring.decode import Engine, Sampling

    model = native()
    asked = Request((1, 2, 3), Sampling(temperature=0), 9)
    (answer,) = Engine(model, rows=1, room=CONTEXT).run([asked])
    assert answer.spent.charge.flops == operations([asked], 9, model)


@pytest.mark.parametrize("budget", [RequestBudget(tokens=29, least=20), RequestBudget(flops=1000, least=1)])
def test_what_is_too_small_is_answered_with_what_would_do(budget: RequestBudget) -> None:
    with pytest.raises(
        ApiError, match=r"too small for a prompt of 10 tokens and the tokens asked for: .* would do"
    ) as found:
        within(budget, [request()], native())
    assert (found.value.status, found.value.code) == (400, "budget_too_small")


def test_the_body_and_the_header_say_what_may_be_spent() -> None:
    fields = BudgetFields(seconds=5.0, tokens=100)
    assert read_budget(fields, None, 30) == RequestBudget(5, 100, math.inf, 30)
    assert read_budget(fields, "2s, 1e9flops, 1ktok", None) == RequestBudget(2, 100, 1e9, 1)
    assert read_budget(BudgetFields(least_tokens=4), "", 30) == RequestBudget(least=4)
    for wrong in ("2", "2s,3B", "0s", "a" * 100, "2s;3s", "\xff"):
        with pytest.raises(ApiError, match="header Shoestring-Budget") as found:
            read_budget(None, wrong, None)
        assert found.value.status == 400


def test_what_is_left_of_a_request() -> None:
    asked = request(10, 20, 2)
    assert rows_of(asked, [0, 0], 1.0) == [ForecastRow(10, 20), ForecastRow(1, 20)]
    assert rows_of(asked, [3, 15], 0.5) == [ForecastRow(1, 7), ForecastRow(1, 1)]
    assert rows_of(asked, [3, 15], 1.0, {1}) == [ForecastRow(1, 17)]


def test_prompts_that_are_longer_than_the_cache_are_taken_in_where_it_evicts() -> None:
    cache = build(CacheConfig, {"budget": "32KiB", "policy": "keydiff"})
    made = service(Settings(rows=2, tokens=64, cache=cache))
    with client(made) as asked:
        (model,) = made.models
        assert model.capacity < 200 < model.longest
        body = {"model": "tiny", "prompt": list(range(200)), "max_tokens": 4, "ignore_eos": True}
        answer = asked.post("/v1/completions", json=body)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 4
    plain = service(Settings(rows=2, tokens=64, cache=build(CacheConfig, {"budget": "32KiB"})))
    with client(plain) as asked:
        assert asked.post("/v1/completions", json=body).status_code == 400
