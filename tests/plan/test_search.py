"""Configurations ranked by a law, and plans that stand on a ladder of runs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from shoestring.budget.budget import Budget
from shoestring.budget.machine import Machine
from shoestring.plan.ladder import ladder, rule_batch
from shoestring.plan.laws.chinchilla import Chinchilla
from shoestring.plan.learned import Learned, alike, best_of_cells, learned_for
from shoestring.plan.means import Exchanged
from shoestring.plan.planner import Plan, plan
from shoestring.plan.runs_table import RunsTable
from shoestring.plan.search import Option, search, told_apart, worth

LAPTOP = Machine("cpu", "a laptop", 2, 16 * 2**30, (), {"float32": 1.5e11, "bfloat16": 4e11}, 2e10)
LAW = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.34, "beta": 0.34}
TEXT = "web auto 4096"
BEST_BATCH, BEST_RATE = 1500.0, 0.03


def run(size: float, tokens: float, batch: float = BEST_BATCH, rate: float = BEST_RATE) -> dict[str, float]:
    """A run of the planted law, worse where batch and rate are not the best for its tokens."""
    off = (
        math.log(batch / (BEST_BATCH * (tokens / 1e6) ** 0.4)) ** 2
        + math.log(rate / (BEST_RATE * (tokens / 1e6) ** -0.2)) ** 2
    )
    loss = Chinchilla().value(LAW, {"parameters": size, "tokens": tokens}) + 0.02 * off
    return {"parameters": size, "tokens": tokens, "batch": batch, "learning_rate": rate, "loss": loss}


def rows() -> list[dict[str, float]]:
    found = []
    for tokens in (3e5, 1e6, 3e6):
        batch, rate = BEST_BATCH * (tokens / 1e6) ** 0.4, BEST_RATE * (tokens / 1e6) ** -0.2
        found += [run(size, tokens, batch, rate) for size in (3e5, 1e6, 3e6)]
        found += [run(3e5, tokens, factor * batch, rate) for factor in (0.5, 2.0)]
        found += [run(3e5, tokens, batch, factor * rate) for factor in (0.5, 2.0)]
    return found


def kept(store: Path, text: str = TEXT, some: int | None = None, optimizer: str = "muon_hypersphere") -> Path:
    lines = [
        {"run": f"{text}/{at}", "text": text, "row": row, "optimizer": optimizer, "ladder": True}
        for at, row in enumerate(rows()[:some])
    ]
    with store.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kept(tmp_path_factory.mktemp("learned") / "store.jsonl")


@pytest.fixture(scope="module")
def taught(store: Path) -> Learned:
    found = learned_for(store, TEXT)
    assert found is not None
    return found


def test_a_ladder_teaches_law_batch_and_rate(taught: Learned) -> None:
    found = taught
    assert (found.own, found.runs, found.corpus) == (True, 21, "web")
    assert found.law.predict({"parameters": 5e6, "tokens": 1e7}).value == pytest.approx(
        Chinchilla().value(LAW, {"parameters": 5e6, "tokens": 1e7}), rel=0.02
    )
    assert found.batch is not None
    assert found.rate is not None
    assert found.batch.predict({"tokens": 1e7}).value == pytest.approx(BEST_BATCH * 10**0.4, rel=0.02)
    assert found.rate.predict({"tokens": 1e7}).value == pytest.approx(BEST_RATE * 10**-0.2, rel=0.02)


def test_a_ladder_on_other_text_teaches_what_is_best_and_no_loss(store: Path, tmp_path: Path) -> None:
    other = learned_for(store, "books auto 4096")
    assert other is not None
    assert (other.own, other.corpus) == (False, "web")
    assert "runs on web" in other.describe()
    assert learned_for(store, "web bytes 257") is None
    assert learned_for(tmp_path / "none.jsonl", TEXT) is None


def test_too_few_sizes_and_lengths_teach_nothing(tmp_path: Path) -> None:
    assert learned_for(kept(tmp_path / "few.jsonl", some=14), TEXT) is None


def test_cells_keep_their_best_run_and_tell_what_varies() -> None:
    table = RunsTable.of(rows())
    best = best_of_cells(table)
    assert len(best) == 9
    for at in range(len(best)):
        cell = [run for run in rows() if run["parameters"] == best.column("parameters")[at]]
        cell = [run for run in cell if run["tokens"] == best.column("tokens")[at]]
        assert best.column("loss")[at] == min(run["loss"] for run in cell)
    batches, rates = alike(table, "batch"), alike(table, "learning_rate")
    assert batches is not None
    assert rates is not None
    assert (len(batches), len(rates)) == (9, 9)
    assert alike(best, "batch") is None


def option(name: str, size: int, tokens: float, **more: float) -> Option:
    given: dict[str, Any] = {"seconds": 10.0, "flops": 1e12, "memory": 1e9, "sent": 0.0, **more}
    return Option(name, size, tokens, binding="seconds", **given)


def test_options_are_ranked_within_every_limit(taught: Learned) -> None:
    law = taught.law
    options = [
        option("small", 300_000, 1e7),
        option("middle", 3_000_000, 1e6),
        option("large", 30_000_000, 1e5),
        option("fat", 3_000_000, 1e8, memory=9e9),
        option("chatty", 3_000_000, 1e8, sent=1e9),
        option("none", 3_000_000, 0.0),
    ]
    found = search(options, law, limits={"memory": 2e9, "sent": 1e6})
    losses = [one.expected.value for one in found.found]
    assert losses == sorted(losses)
    assert {one.option.name for one in found.found} == {"small", "middle", "large"}
    assert [one.option.name for one in found.next_best] == [one.option.name for one in found.found[1:]]
    reasons = {one.name: why for one, why in found.refused}
    assert "bytes of memory" in reasons["fat"]
    assert "over the link" in reasons["chatty"]
    assert "too few" in reasons["none"]
    assert not told_apart([found.best, found.best])
    assert told_apart([found.best])


def test_repeated_tokens_are_worth_less() -> None:
    assert worth(1e6, 2e6) == 1e6
    assert worth(8e6, 2e6) == pytest.approx(2e6 + 2e6 * 15.39 * (1 - math.exp(-3 / 15.39)))
    assert worth(1e12, 2e6) == pytest.approx(2e6 * 16.39)


def planned(budget: Budget, **more: Any) -> Plan:
    given: dict[str, Any] = {"corpus_tokens": 10**8, "vocabulary": 4096, "fixed": {}, **more}
    return plan(budget, LAPTOP, **given)


def value(made: Plan, key: str) -> Any:
    return next(one.value for one in made.decisions if one.key == key)


def test_a_plan_takes_size_batch_and_rates_from_what_was_learned(taught: Learned) -> None:
    made, by_rule = planned(Budget(seconds=120), learned=taught), planned(Budget(seconds=120))
    assert made.searched is not None
    ranked = made.searched.found
    assert made.parameters == ranked[0].option.parameters
    assert ranked[0].expected.value == min(one.expected.value for one in ranked)
    assert made.made_by == "size, batch, rates by laws fitted to 21 runs"
    assert value(made, "optim.lr") == pytest.approx(BEST_RATE * (made.tokens / 1e6) ** -0.2, rel=0.03)
    assert value(made, "fallback.lr") / value(by_rule, "fallback.lr") == pytest.approx(
        value(made, "optim.lr") / value(by_rule, "optim.lr")
    )
    batch = value(made, "train.batch") * value(made, "model.context")
    assert batch == pytest.approx(BEST_BATCH * (made.tokens / 1e6) ** 0.4, rel=0.45)  # the next power of two
    assert "by rule" in by_rule.made_by
    assert by_rule.searched is None
    settled = planned(Budget(seconds=120), learned=taught, fixed={"model": {"layers": 3, "width": 96}})
    assert settled.searched is None
    assert made.loss == ranked[0].expected
    assert settled.loss is not None
    assert (
        settled.loss.low
        < Chinchilla().value(LAW, {"parameters": settled.parameters, "tokens": settled.tokens})
        < settled.loss.high
    )
    assert value(planned(Budget(seconds=120), learned=taught, fixed={"optim": "muon"}), "optim.lr") == 0.025


def test_a_law_is_not_asked_far_from_its_ladder(taught: Learned) -> None:
    made = planned(Budget(seconds=3e5), learned=taught)
    assert made.parameters <= 10 * 3e6


def test_serving_is_paid_from_the_same_budget() -> None:
    plain, serving = planned(Budget(flops=1e14)), planned(Budget(flops=1e14), served=1e7)
    assert serving.flops < plain.flops
    assert serving.parameters <= plain.parameters
    seconds = planned(Budget(seconds=600), served=1e6)
    assert seconds.beside["serving"] > 0
    assert sum(seconds.beside.values()) + seconds.tokens * seconds.pace.per_token == pytest.approx(600)


def test_bytes_over_a_link_can_bind() -> None:
    exchanged = Exchanged(every=30, bits=2.0, workers=2)
    made = planned(Budget(seconds=600, bytes=2e7), workers=2, at_once=2, exchanged=exchanged)
    assert made.binding == "bytes"
    assert made.sent == pytest.approx(2e7, rel=0.05)
    assert planned(Budget(seconds=600), workers=2, at_once=2, exchanged=exchanged).sent > 2e7


def test_a_ladder_fills_its_allowance() -> None:
    paces = [1e-4, 3e-4, 6e-4, 1e-3, 2e-3]
    rungs = ladder(1800.0, paces)
    assert sum(rung.seconds for rung in rungs) == pytest.approx(0.85 * 1800, rel=0.01)
    sizes = {(rung.layers, rung.width) for rung in rungs}
    assert len(rungs) == 3 * (len(sizes) + 4)
    assert len({rung.name for rung in rungs}) == len(rungs)
    assert len({rung.tokens for rung in rungs}) == 3
    assert len(sizes) <= len({(rung.layers, rung.width) for rung in ladder(36000.0, paces)}) == 5
    asked = rungs[0].asked("muon_hypersphere")
    assert asked["train"]["batch"] == rule_batch(rungs[0].tokens, 256)
    with pytest.raises(Exception, match=r"too little for a ladder of 3 sizes here: give \d+s"):
        ladder(20.0, paces)
