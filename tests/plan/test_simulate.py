"""Operators of a pass, their times, and what layouts of workers make of them."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import flop_registry
from transformers import AutoModelForCausalLM, LlamaConfig

from shoestring.budget.machine import Machine
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.model.config import ModelConfig
from shoestring.model.outline import outline
from shoestring.model.transformer import Transformer
from shoestring.model.wrapped import Wrapped
from shoestring.plan.simulate import (
    OperatorTimes,
    Trace,
    WorkerLayout,
    WorkerLink,
    layouts,
    simulate,
    simulate_serving,
    trace,
)
from tests.flop_counting import CPU_ATTENTION

MACHINE = Machine("cpu", "a laptop", 1, 2**34, (), {"float32": 1e11, "bfloat16": 1e11}, 1e10)
ROWS, CONTEXT = 8, 16


def native() -> Transformer:
    with outline():
        return Transformer(ModelConfig(layers=2, width=32, heads=2, vocabulary=128, context=64))


def foreign() -> LanguageModule:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, vocab_size=128,
        max_position_embeddings=64,
    )  # fmt: skip
    return Wrapped(AutoModelForCausalLM.from_config(config))


@pytest.fixture(scope="module")
def traced() -> Trace:
    return trace(native(), ROWS, CONTEXT)


@pytest.fixture(scope="module")
def known(traced: Trace, tmp_path_factory: pytest.TempPathFactory) -> OperatorTimes:
    """Every operator at 1 ms, every call at 1 us: what layouts make of it is then known."""
    times = OperatorTimes(cache=tmp_path_factory.mktemp("times"))
    times.known = {one.name: 1e-3 for one in traced.operators} | {"a call": 1e-6}
    return times


def flops(found: Trace) -> int:
    """By torch's own formulas of operators, at the shapes that were traced."""
    formulas: dict[Any, Any] = {**flop_registry, **CPU_ATTENTION}
    total = 0
    for one, often in found.operators.items():
        formula = formulas.get(one.function._overloadpacket)
        if formula is not None:
            total += often * formula(*(getattr(operand, "size", operand) for operand in one.operands))
    return total


@pytest.mark.parametrize("make", [native, foreign])
def test_the_operators_of_a_pass_are_what_its_cost_charges(make: Any) -> None:
    model = make()
    found = trace(model, ROWS, CONTEXT)
    expected = model.cost(Shape(ROWS, CONTEXT, backward=True)).flops
    products = sum(often for one, often in found.operators.items() if one.product)
    assert found.calls > products > 10
    if make is native:
        assert flops(found) == expected
    else:
        assert flops(found) == pytest.approx(expected, rel=0.1)  # of a wrapped model attention is masked in its own way
    assert all(parameter.grad is None for parameter in model.parameters())


def test_operators_are_timed_once(traced: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = Counter(dict(list(traced.operators.items())[:4]))
    times = OperatorTimes(cache=tmp_path)
    assert times.learn(few) == 4
    assert all(times.seconds(one) > 0 for one in few)
    monkeypatch.setattr("shoestring.plan.simulate.profile.timed", lambda *given, **more: pytest.fail("timed again"))
    again = OperatorTimes(cache=tmp_path)
    assert again.learn(few) == 0
    assert again.known == times.known
    assert again.missing(traced.operators)


def test_every_operator_of_a_pass_can_be_called_alone(traced: Trace) -> None:
    for one in traced.operators:
        one.call("cpu")()


def test_one_worker_takes_the_sum_of_its_operators(traced: Trace, known: OperatorTimes) -> None:
    found = simulate(native(), MACHINE, known, rows=ROWS, context=CONTEXT, traced=traced, update_flops=10**8)
    count = sum(traced.operators.values())
    parameters = sum(p.numel() for p in native().parameters())
    assert found.seconds == pytest.approx(1e-3 * count + 1e-6 * traced.calls + 1e8 / 1e11 + 40 * parameters / 1e10)
    assert found.flops == native().cost(Shape(ROWS, CONTEXT, backward=True)).flops + 10**8
    assert (found.sent, found.tokens) == (0, ROWS * CONTEXT)
    assert sum(found.by_cause.values()) == pytest.approx(found.seconds)


def test_an_update_of_more_operations_than_32_bits_count_is_simulated(traced: Trace, known: OperatorTimes) -> None:
    found = simulate(native(), MACHINE, known, rows=ROWS, context=CONTEXT, traced=traced, update_flops=42 * 10**9)
    assert found.by_cause["update"] > 42e9 / MACHINE.matmul[MACHINE.best_precision]


def test_layouts_add_bubbles_and_exchanges(traced: Trace, known: OperatorTimes) -> None:
    def one(rows: int, **layout: Any) -> Any:
        given: dict[str, Any] = {"context": CONTEXT, "traced": traced, "link": WorkerLink(1e6, 1e-3)}
        return simulate(native(), MACHINE, known, rows=rows, layout=WorkerLayout(**layout), **given)

    alone, parameters = one(ROWS), sum(p.numel() for p in native().parameters())
    data = one(4 * ROWS, data=4)
    assert data.by_cause["products"] == alone.by_cause["products"]
    assert data.sent == pytest.approx(2 * 3 / 4 * parameters * 4)
    assert data.by_cause["exchange of copies"] == pytest.approx(data.sent / 1e6 + 3e-3)
    seldom = one(4 * ROWS, data=4, every=30, bits=2)
    assert seldom.sent == pytest.approx(data.sent / 30 / 16)
    stages = one(4 * ROWS, stages=2, micro_batches=4)
    working = stages.by_cause["products"] + stages.by_cause["other operators"]
    assert stages.by_cause["pipeline bubble"] == pytest.approx(working / 4)
    assert working == pytest.approx(4 * (alone.by_cause["products"] + alone.by_cause["other operators"]) / 2)
    tensor = one(ROWS, tensor=2)
    assert tensor.by_cause["products"] == pytest.approx(alone.by_cause["products"] / 2)
    assert tensor.sent == pytest.approx(4 * 2 * ROWS * CONTEXT * 32 * 4)
    assert tensor.memory < alone.memory


def test_what_does_not_divide_is_refused(traced: Trace, known: OperatorTimes) -> None:
    for layout, rows, said in (
        (WorkerLayout(data=3), 8, "do not divide into 3 copies"),
        (WorkerLayout(stages=3), 9, "2 layers do not divide into 3 stages"),
        (WorkerLayout(data=2), 8, "needs a link"),
    ):
        with pytest.raises(UsageError, match=said):
            simulate(native(), MACHINE, known, rows=rows, context=CONTEXT, layout=layout, traced=traced)
    with pytest.raises(UsageError, match="at least 1"):
        WorkerLayout(data=0)
    found = {(one.data, one.tensor, one.stages) for one in layouts(4, layers=2, heads=2, rows=8, micro_batches=2)}
    assert found == {(4, 1, 1), (2, 2, 1), (2, 1, 2), (1, 2, 2)}


def test_an_answer_takes_its_prompt_and_a_pass_for_each_token() -> None:
    model = native()
    found = simulate_serving(model, MACHINE, prompt=8, written=5, rows=2)
    prompt, token = model.cost(Shape(2, 8, 0, outputs=1)), model.cost(Shape(2, 1, 10, outputs=1))
    assert found.flops == (prompt.flops + 4 * token.flops) / 2
    assert found.moved == (prompt.moved + 4 * token.moved) / 2
    assert found.seconds >= (prompt.moved + 4 * token.moved) / MACHINE.bandwidth
    halved = simulate_serving(
        model, MACHINE, prompt=8, written=5, rows=2, layout=WorkerLayout(stages=2), link=WorkerLink(1e6)
    )
    assert halved.memory == found.memory / 2
    assert halved.sent > 0
    with pytest.raises(UsageError, match="do not fit a context of 64"):
        simulate_serving(model, MACHINE, prompt=60, written=5)
