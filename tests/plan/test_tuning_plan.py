"""What tuning takes: windows that hold chats, batches that leave steps, ranks that hold the text, memory of adapters alone."""

from typing import Any

import pytest

from shoestring.budget.budget import Budget
from shoestring.budget.machine import Machine
from shoestring.config import Choice, build
from shoestring.model import ModelConfig, Transformer
from shoestring.plan import rules
from shoestring.plan.planner import adapts
from shoestring.plan.sizes import training_memory
from shoestring.plan.tuning import MOST_BATCH, MOST_JUDGED, RANKS, plan_tuning
from shoestring.tune.edits.road import RoAd

MACHINE = Machine("cpu", "test", 2, 1 << 34, (), {"float32": 1e11}, 1e10)
SIZES: dict[str, Any] = {"layers": 2, "width": 64, "heads": 4, "vocabulary": 512}


def planned(
    budget: Budget,
    method: str | None = "lora",
    given: dict[str, Any] | None = None,
    lengths: tuple[int, ...] = (),
    **more: Any,
) -> dict[str, Any]:
    model = Transformer(ModelConfig(**{**SIZES, "context": 1024, **more}))
    choice = None if method is None else Choice.of("tune", method, kind="edit")
    made = plan_tuning(model, choice, budget, MACHINE, given or {}, lengths)
    assert all(one.reason for one in made)
    return {one.key: one.value for one in made}


@pytest.mark.parametrize(
    ("lengths", "context"),
    [((), 512), ((30, 40, 50), 64), ((100,) * 99 + (9000,), 128), ((600,) * 10, 512), ((70,), 128)],
)
def test_the_window_holds_most_chats(lengths: tuple[int, ...], context: int) -> None:
    assert planned(Budget(tokens=1e6), lengths=lengths)["model.context"] == context


def test_a_window_is_no_longer_than_the_memory_holds() -> None:
    model = Transformer(ModelConfig(**SIZES, context=1024))
    count = sum(parameter.numel() for parameter in model.parameters())
    context = planned(Budget(tokens=1e6), given={"memory": "604MB"})["model.context"]
    takes = [training_memory(model.about, count, size, count // rules.ADAPTED) for size in (context, context + 64)]
    assert takes[0] <= 604e6 < takes[1]
    assert 64 < context < 512
    assert planned(Budget(tokens=1e6), given={"memory": "1GB"})["model.context"] == 512
    asked = {"memory": "604MB", "model": {"context": 512}}
    assert "model.context" not in planned(Budget(tokens=1e6), given=asked)


def test_no_window_is_longer_than_the_base_reads() -> None:
    assert planned(Budget(tokens=1e6), lengths=(90,) * 5, context=80)["model.context"] == 80


@pytest.mark.parametrize("tokens", [1e3, 1e5, 1e6, 1e8])
def test_more_budget_never_means_less_of_anything(tokens: float) -> None:
    less, more = planned(Budget(tokens=tokens)), planned(Budget(tokens=10 * tokens))
    for key in ("train.batch", "edits.lora.rank", "train.heldout_tokens", "old.tokens"):
        assert less[key] <= more[key]
    assert 1 <= less["train.batch"] <= MOST_BATCH
    assert less["edits.lora.rank"] in RANKS
    assert less["train.heldout_tokens"] <= MOST_JUDGED
    assert planned(Budget(tokens=1e3))["edits.lora.rank"] == RANKS[0]
    assert planned(Budget(tokens=1e10))["edits.lora.rank"] == RANKS[-1]


def test_all_resources_of_a_budget_are_heeded() -> None:
    alone = planned(Budget(tokens=1e7))
    assert planned(Budget(tokens=1e7, seconds=5.0))["train.batch"] < alone["train.batch"]
    assert planned(Budget(tokens=1e7, flops=1e9))["train.batch"] < alone["train.batch"]


def test_a_budget_of_tokens_counts_those_that_are_learnt() -> None:
    model = Transformer(build(ModelConfig, {**SIZES, "context": 1024}))
    lora = Choice.of("tune", "lora", kind="edit")
    half, whole = (plan_tuning(model, lora, Budget(tokens=3e5), MACHINE, {}, (60,) * 9, share) for share in (0.5, 1.0))
    batches = [next(one.value for one in made if one.key == "train.batch") for made in (half, whole)]
    assert batches[0] >= batches[1]
    assert "600,000 tokens" in next(one.reason for one in half if one.key == "train.batch")


def test_what_is_given_is_left_alone() -> None:
    given = {
        "model": {"context": 96},
        "train": {"batch": 3},
        "edits": [{"name": "lora", "rank": 5}],
        "optim": {"lr": 0.1},
    }
    found = planned(Budget(tokens=1e6), given=given)
    assert found.keys() == {"train.heldout_tokens", "old.tokens", "fallback.lr"}


def test_methods_bring_their_rates_and_ranks_where_they_have_one() -> None:
    road = planned(Budget(tokens=1e6), "road")
    assert road["optim.lr"] == road["fallback.lr"] == RoAd.rate
    assert not any(key.endswith("rank") for key in road)
    full = planned(Budget(tokens=1e6), None)
    assert not any(key.startswith(("edits", "optim", "fallback")) for key in full)


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([], False),
        ("lora", True),
        ([{"name": "ternary"}], False),
        ({"lora": {"rank": 3}}, True),
        (["drop_layers"], False),
    ],
)
def test_adapters_are_told_from_other_edits(edits: Any, expected: bool) -> None:
    assert adapts({"edits": edits}) == expected
    assert not adapts({})


def test_adapters_need_the_memory_of_the_weights_and_of_themselves() -> None:
    model = build(ModelConfig, SIZES)
    whole, adapters = (training_memory(model, 10**8, 64, trained) for trained in (None, 10**8 // rules.ADAPTED))
    assert whole - adapters == 12 * 10**8 - 16 * (10**8 // rules.ADAPTED)
