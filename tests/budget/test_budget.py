import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.budget.budget import Budget
from shoestring.budget.ledger import Totals
from shoestring.budget.units import UNITS, parse_amount, parse_memory, show
from shoestring.errors import UsageError


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("2m", Budget(seconds=120)),
        ("90s", Budget(seconds=90)),
        ("8h", Budget(seconds=28800)),
        ("1e15flops", Budget(flops=1e15)),
        ("3EFLOPs", Budget(flops=3e18)),
        ("20Mtok", Budget(tokens=2e7)),
        ("200MB", Budget(bytes=2e8)),
        ("2m,20Mtok", Budget(seconds=120, tokens=2e7)),
        ("1GiB 1h", Budget(bytes=2**30, seconds=3600)),
    ],
)
def test_budgets_as_people_write_them(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@given(st.floats(1e-6, 1e30), st.sampled_from(["seconds", "flops", "tokens", "bytes"]))
def test_a_written_budget_reads_back_exactly(amount: float, resource: str) -> None:
    budget = Budget(**{resource: amount})
    assert Budget.parse(budget.write()) == budget


@pytest.mark.parametrize("text", ["", "0s", "0tok", "2", "-2m", "2 parsecs", "1m 2m", "1e999s", "nan s", "5usd", "m"])
def test_budgets_that_buy_nothing_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Budget.parse(text)


def test_the_first_resource_to_run_out_binds() -> None:
    budget = Budget(seconds=100, tokens=1000)
    spent = budget.spent(Totals(seconds={"compute": 30, "data": 10, "sync_hidden": 500}, tokens=500))
    assert (spent.binding, spent.progress) == ("tokens", 0.5)
    assert spent.shares["seconds"] == pytest.approx(0.4)
    assert budget.spent(Totals(seconds={"compute": 45}, tokens=500), reserve_seconds=40).binding == "seconds"
    assert budget.spent(Totals(tokens=5000)).progress == 1.0


def test_every_unit_is_read_and_shown() -> None:
    for unit, (resource, size) in UNITS.items():
        assert parse_amount(f"3{unit}") == (resource, 3 * size)
    for resource, amount in [("seconds", 0.5), ("seconds", 125), ("seconds", 7300), ("tokens", 12), ("bytes", 2e9)]:
        assert show(resource, amount)
    assert parse_memory("4GiB") == 2**32
    with pytest.raises(UsageError):
        parse_memory("4m")
