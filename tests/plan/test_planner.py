import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.budget.budget import Budget
from shoestring.budget.machine import Machine
from shoestring.config import build, merge
from shoestring.contract.cost import Shape
from shoestring.errors import UsageError
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.plan import rules
from shoestring.plan.choosing import UseLimit
from shoestring.plan.pace import Pace
from shoestring.plan.planner import Plan, paces_for, plan
from shoestring.plan.settings import batch_of
from shoestring.plan.sizes import flops_per_token, parameters
from shoestring.train.config import RunConfig

LAPTOP = Machine("cpu", "a laptop", 2, 16 * 2**30, (), {"float32": 1.5e11, "bfloat16": 4e11}, 2e10)


def _config(budget: Budget, **more: object) -> RunConfig:
    made = plan(budget, LAPTOP, corpus_tokens=3_000_000, vocabulary=4096, fixed=dict(more))
    return build(RunConfig, merge(merge(made.tree(), {"budget": budget.write()}), dict(more)))


def test_more_to_spend_never_plans_a_smaller_model() -> None:
    sizes = []
    for seconds in (30, 60, 120, 600, 3600, 36000, 360000):
        config = _config(Budget(seconds=seconds))
        sizes.append(parameters(config.model))
    assert sizes == sorted(sizes)
    assert sizes[-1] > 10 * sizes[0]


@pytest.mark.parametrize("text", [2_000, 20_000, 200_000, 2_000_000])
def test_a_model_has_no_more_weights_than_its_text_can_teach(text: int) -> None:
    made = plan(Budget(seconds=1200), LAPTOP, corpus_tokens=text, vocabulary=512, fixed={})
    most = rules.MOST_WEIGHTS * text / rules.TOKENS_PER_PARAMETER
    smallest = rules.LADDER[0]
    assert made.parameters <= most or made.tree()["model"]["width"] == smallest.width
    epochs = made.tokens / text
    warned = [line for line in made.warnings if "passed over" in line]
    assert bool(warned) == (epochs > rules.MOST_EPOCHS)
    assert any("of this budget would teach" in line for line in warned) == (epochs > rules.LAST_EPOCHS)


@settings(deadline=None, max_examples=20)
@given(seconds=st.floats(5, 1e6), memory=st.floats(2e9, 6e10))
def test_a_plan_is_a_complete_configuration_within_its_memory(seconds: float, memory: float) -> None:
    made = plan(Budget(seconds=seconds), LAPTOP, corpus_tokens=10**9, vocabulary=4096, fixed={}, memory=memory)
    assert made.memory <= memory
    config = build(RunConfig, merge(made.tree(), {"budget": "1s"}))
    assert config.train.batch % (config.train.micro_batch or config.train.batch) == 0
    assert all(decision.reason for decision in made.decisions)


def test_each_resource_can_bind() -> None:
    for text, binding in (("2m", "seconds"), ("1e12flops", "flops"), ("1Mtok", "tokens"), ("10h,1Mtok", "tokens")):
        assert plan(Budget.parse(text), LAPTOP, corpus_tokens=10**7, vocabulary=512, fixed={}).binding == binding


def test_what_is_given_is_kept_and_the_rest_planned_around_it() -> None:
    config = _config(Budget(seconds=120), model={"layers": 3, "width": 96}, optim={"name": "adamw", "lr": 0.1})
    assert (config.model.layers, config.model.width, config.optim.name) == (3, 96, "adamw")
    assert config.optim.options["lr"] == 0.1


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="of memory"):
        plan(Budget(seconds=60), LAPTOP, corpus_tokens=10**6, vocabulary=4096, fixed={}, memory=1e8)
    with pytest.raises(UsageError, match="spent before training begins"):
        plan(Budget(seconds=5), LAPTOP, corpus_tokens=10**6, vocabulary=4096, fixed={}, seconds_spent=6)
    for text, said in (("1e30flops", "years"), ("1e20tok", "years"), ("1e9h", "years"), ("400d", "400 days")):
        with pytest.raises(UsageError, match=f"{said} on this machine"):
            plan(Budget.parse(text), LAPTOP, corpus_tokens=10**6, vocabulary=4096, fixed={})
    with pytest.raises(UsageError, match="how long to train"):
        plan(Budget(bytes=1e6), LAPTOP, corpus_tokens=10**6, vocabulary=4096, fixed={})


def test_a_corpus_passed_over_often_is_warned_of() -> None:
    made = plan(Budget(tokens=1e8), LAPTOP, corpus_tokens=10**6, vocabulary=4096, fixed={})
    assert any("times" in warning for warning in made.warnings)


def test_costs_are_those_of_the_model_that_is_built() -> None:
    model = _config(Budget(seconds=60)).model
    built = Transformer(model)
    assert parameters(model) == sum(p.numel() for p in built.parameters())
    assert flops_per_token(model) == built.cost(Shape(1, model.context, backward=True)).flops / model.context


def test_a_method_asked_for_by_name_alone_keeps_its_planned_rate() -> None:
    planned = _config(Budget(seconds=60)).optim
    assert _config(Budget(seconds=60), optim=planned.name).optim.options["lr"] == planned.options["lr"]
    assert _config(Budget(seconds=60), optim="muon").optim.options["lr"] == 0.025
    assert _config(Budget(seconds=60), optim="adamw").optim.name == "adamw"


def test_a_measured_critical_batch_bounds_the_batch() -> None:
    def batch(critical: float | None) -> tuple[int, str]:
        made = plan(
            Budget(tokens=2e7),
            LAPTOP,
            corpus_tokens=10**8,
            vocabulary=4096,
            fixed={"model": {"context": 256}},
            critical_batch=critical,
        )
        found = next(decision for decision in made.decisions if decision.key == "train.batch")
        return int(found.value), found.reason

    by_rule, _ = batch(None)
    assert batch(1e9)[0] == by_rule
    small, reason = batch(4 * 256 * 2)
    assert small == 4 < by_rule
    assert "critical batch of 2,048 tokens" in reason


def _plan(seconds: float, **more: Any) -> Plan:
    options = {"corpus_tokens": 10**8, "vocabulary": 4096, "fixed": {}, **more}
    return plan(Budget(seconds=seconds), LAPTOP, **options)


@pytest.mark.parametrize("seconds", [20.0, 40.0, 60.0, 120.0, 3600.0])
def test_what_is_expected_adds_up_to_the_budget(seconds: float) -> None:
    made = _plan(seconds, seconds_spent=2.0)
    assert 2.0 + sum(made.beside.values()) + made.tokens * made.pace.per_token == pytest.approx(seconds)
    assert made.beside["measuring"] <= 0.1 * seconds


@pytest.mark.parametrize(
    ("rate", "layers", "width", "seconds", "trained"),
    [
        (850e9, 3, 128, 120.0, 2.82e6),  # the README's demo of 0.1.0: 4.3 M were expected
        (427e9, 2, 64, 60.0, 2.10e6),  # evidence/default-seconds
    ],
)
def test_tokens_expected_by_rule_are_near_those_that_were_trained(
    rate: float, layers: int, width: int, seconds: float, trained: float
) -> None:
    machine = replace(LAPTOP, matmul={"float32": rate / 3, "bfloat16": rate})
    shape = {"layers": layers, "width": width, "heads": width // 32, "vocabulary": 4096}
    options: dict[str, Any] = {"corpus_tokens": 3_200_000, "vocabulary": 4096, "heldout_tokens": 29_000}
    made = plan(Budget(seconds=seconds), machine, fixed={"model": shape}, **options)
    assert made.tokens == pytest.approx(trained, rel=0.25)


def test_a_measured_pace_is_what_the_plan_goes_by() -> None:
    by_rule = _plan(120.0)
    shape = build(RunConfig, merge(by_rule.tree(), {"budget": "120s"})).model
    paces = paces_for(LAPTOP, Budget(seconds=120.0), {})
    paces.add(shape, flops_per_token(shape), Pace(by_rule.pace.per_token * 3, 0.3, 0.1, memory=2e9, measured=True))
    found = plan(
        Budget(seconds=120),
        LAPTOP,
        corpus_tokens=10**8,
        vocabulary=4096,
        fixed={"model": {"width": shape.width, "layers": shape.layers, "heads": shape.heads}},
        paces=paces,
    )
    assert found.pace.measured
    assert found.tokens == pytest.approx(by_rule.tokens / 3, rel=0.1)
    assert found.memory == 2e9
    other = plan(Budget(seconds=120), LAPTOP, corpus_tokens=10**8, vocabulary=4096, fixed={}, paces=paces)
    assert other.parameters <= by_rule.parameters  # three times slower than by rule, whatever the shape
    assert other.tokens < by_rule.tokens


def test_a_budget_that_buys_no_step_is_refused_and_one_of_few_is_told() -> None:
    with pytest.raises(
        UsageError, match=r"buys no step: 2.0 s are spent, and a run takes 1.0 s of starting.* give at least \d+s"
    ):
        _plan(4.2, seconds_spent=2.0)
    said = " ".join(
        _plan(20.0, seconds_spent=2.0, fixed={"model": {"layers": 12, "width": 512}, "train": {"batch": 4}}).warnings
    )
    assert "too few to learn from" in said
    least = float(re.search(r"(\d+)s would buy 20", said)[1])  # type: ignore[index]
    enough = _plan(least, seconds_spent=2.0, fixed={"model": {"layers": 12, "width": 512}, "train": {"batch": 4}})
    assert enough.steps >= 20
    assert "too few" not in " ".join(enough.warnings)


def test_a_batch_leaves_steps_down_to_one_sequence_and_large_models_are_kept_seldom() -> None:
    settled = {"model": {"layers": 12, "width": 512, "context": 256}}
    for seconds in (30.0, 60.0, 240.0, 1200.0):
        plan = _plan(seconds, fixed=settled)
        found = {one.key: one.value for one in plan.decisions}
        assert plan.steps >= rules.ENOUGH_STEPS or found["train.batch"] == 1
        assert ("train.checkpoint_every" in found) == (rules.saving_seconds(4 * plan.parameters) > 3.0)
    assert batch_of(1e9, 512, None, None, tuned=True)[0] == rules.BASE_BATCH


def test_memory_is_at_least_what_the_process_has_held() -> None:
    assert _plan(60.0, held=3e9).memory == 3e9
    assert _plan(60.0, held=1.0).memory > 5e8


def test_a_model_is_no_larger_than_what_it_may_take_in_use() -> None:
    asked: list[int] = []

    def takes(model: ModelConfig) -> float:
        asked.append(model.width)
        return 10.0 * model.width * model.layers

    free = _plan(3600.0)
    made = _plan(3600.0, use=UseLimit(10.0 * 3 * 128, takes))
    size = {one.key: one for one in made.decisions}
    assert (size["model.layers"].value, size["model.width"].value) == (3, 128)
    assert "the largest rung that fits in 3.84 kB in use" in size["model.layers"].reason
    assert made.parameters < free.parameters
    assert _plan(3600.0, use=UseLimit(1e12, takes)).decisions == free.decisions
    with pytest.raises(
        UsageError, match=r"2 layers of 64 with a vocabulary of 4096 take 1.28 kB in use, and 1 kB are allowed"
    ):
        _plan(3600.0, use=UseLimit(1000.0, takes))
    assert max(asked) > 128
