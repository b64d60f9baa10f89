import math
from pathlib import Path

import pytest

from shoestring.budget.machine import Machine, timed
from shoestring.errors import UsageError
from shoestring.model.config import ModelConfig
from shoestring.train import settling
from shoestring.train.execution import require_device
from shoestring.train.sections import ExecutionConfig
from shoestring.train.settling import Execution
from shoestring.train.step_timings import Allowance, NoTimeLeft, StepBench, with_changes

MACHINE = Machine("cpu", "a processor", 2, 2**34, (), {"float32": 1e11, "bfloat16": 4e11}, 1e10)
MODEL = ModelConfig(1, 16, 2, vocabulary=64, context=16)


def settle(cache: Path, seconds: float | None, config: ExecutionConfig | None = None) -> Execution:
    return settling.settle(config or ExecutionConfig(), MODEL, rows=2, seconds=seconds, machine=MACHINE, cache=cache)


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Timings told instead of measured, by what is timed."""
    told = {"float32 none flash": 3.0, "bfloat16 none flash": 4.0, "bfloat16 blocks chunked": 1.0}
    told |= {"float32 none chunked": 3.5, "bfloat16 none chunked": 2.0}

    def block(self: object, config: ExecutionConfig) -> float:
        return told[f"{config.precision} {config.compile} {config.attention}"]

    monkeypatch.setattr(StepBench, "_block", block)
    monkeypatch.setattr(StepBench, "_loss", lambda self, config: len(config.loss) - (config.loss == "plain"))
    return told


def test_the_fastest_is_chosen_and_nothing_is_left_open(timings: dict[str, float], tmp_path: Path) -> None:
    found = settle(tmp_path, None)
    config = found.config
    assert (config.precision, config.compile, config.attention, config.loss) == (
        "bfloat16",
        "blocks",
        "chunked",
        "plain",
    )
    assert "auto" not in vars(config).values()
    assert len(found.reasons) == 2


def test_a_loss_that_keeps_all_logits_must_be_worth_it(
    timings: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepBench, "_loss", lambda self, config: {"plain": 1.0, "fused": 1.04}[config.loss])
    assert settle(tmp_path, 60).config.loss == "fused"


def test_precision_and_attention_are_settled_together(timings: dict[str, float], tmp_path: Path) -> None:
    found = settle(tmp_path, 60).config
    assert (found.precision, found.attention, found.compile) == ("bfloat16", "chunked", "none")
    timings["float32 none flash"] = 1.5
    found = settle(tmp_path / "other", 60).config
    assert (found.precision, found.attention, found.compile) == ("float32", "flash", "none")


def test_the_output_layer_weighs_in_on_the_precision(
    timings: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timings["float32 none flash"] = 1.5  # the block alone says float32
    costs = {"float32": 4.0, "bfloat16": 1.0}
    monkeypatch.setattr(StepBench, "_loss", lambda self, config: costs[config.precision])
    assert settle(tmp_path, 60).config.precision == "bfloat16"


def test_compiling_must_earn_its_cost(timings: dict[str, float], tmp_path: Path) -> None:
    assert settle(tmp_path, 60).config.compile == "none"  # never tried here, and too short to try
    assert settle(tmp_path, 600).config.compile == "blocks"
    assert settle(tmp_path, 60).config.compile == "blocks"  # known by now
    assert settle(tmp_path, 6).config.compile == "none"  # saves 3 s, costs more
    timings["bfloat16 blocks chunked"] = 2.1
    assert settle(tmp_path / "other", 600).config.compile == "none"


def test_a_failing_compiler_is_said_aloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def block(self: object, config: ExecutionConfig) -> float:
        if config.compile == "blocks":
            raise RuntimeError("no compiler")
        return 1.0

    monkeypatch.setattr(StepBench, "_block", block)
    monkeypatch.setattr(StepBench, "_loss", lambda self, config: 1.0)
    found = settle(tmp_path, None)
    assert found.config.compile == "none"
    assert any("NOT compiled" in reason and "no compiler" in reason for reason in found.reasons)


def test_what_is_given_is_not_decided(tmp_path: Path) -> None:
    given = ExecutionConfig("cpu", "float32", "none", "flash", "plain", 1)
    assert settle(tmp_path, None, given) == Execution(given, ())


def test_it_really_measures(tmp_path: Path) -> None:
    found = settle(tmp_path, 10)
    assert found.config.compile == "none"
    assert any("in bfloat16" in reason for reason in found.reasons)
    assert settle(tmp_path, 10).reasons == found.reasons


class Clock:
    """A clock that what is timed sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A machine on which timing a block or a loss takes five seconds."""
    clock = Clock()

    def timed(self: object, config: ExecutionConfig) -> float:
        clock.now += 5.0
        return 1.0 if config.precision == "bfloat16" else 2.0

    monkeypatch.setattr(StepBench, "_block", timed)
    monkeypatch.setattr(StepBench, "_loss", timed)
    return clock


@pytest.mark.parametrize(
    ("allowed", "spent", "said"),
    [(0.0, 0.0, "NOT measured"), (12.0, 10.0, "not tried within 12.0 s"), (1e3, 40.0, "take")],
)
def test_measuring_keeps_to_its_allowance_and_says_what_it_left_out(
    slow: Clock, tmp_path: Path, allowed: float, spent: float, said: str
) -> None:
    config, allowance = ExecutionConfig(compile="none"), Allowance(allowed, slow)
    words = {"rows": 2, "seconds": 10 * allowed, "machine": MACHINE, "cache": tmp_path}
    found = settling.settle(config, MODEL, allowance=allowance, **words)  # type: ignore[arg-type]
    assert slow.now == spent
    assert any(said in reason for reason in found.reasons)
    assert "auto" not in vars(found.config).values()
    assert found.config.precision == "bfloat16"  # the machine's best, and tried first


@pytest.mark.parametrize(
    ("seconds", "left", "allowed"), [(100.0, 90.0, 10.0), (100.0, 6.0, 3.0), (100.0, -2.0, 0.0), (None, None, math.inf)]
)
def test_measuring_is_allowed_a_share_of_the_budget(seconds: float | None, left: float | None, allowed: float) -> None:
    assert Allowance.share(seconds, left).seconds == allowed
    assert Allowance.share(seconds, left, used=1e6).seconds == (0.0 if seconds else math.inf)


def test_a_first_compile_takes_a_longer_budget_beside_other_processes(
    timings: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoestring.budget.busy_waiting.crowded", lambda: True)
    found = settle(tmp_path, 200)
    assert found.config.compile == "none"
    assert any("beside other processes" in reason for reason in found.reasons)
    assert settle(tmp_path, 600).config.compile == "blocks"


def test_a_slow_call_is_not_repeated() -> None:
    calls: list[int] = []
    assert timed(lambda: calls.append(1), least=3, most=0.0) >= 0
    assert len(calls) == 1
    timed(lambda: calls.append(1), least=3, seconds=0.0)
    assert len(calls) == 1 + 4


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    require_device(ExecutionConfig(device="auto"))
    with pytest.raises(UsageError, match="torch finds no GPU here"):
        require_device(ExecutionConfig(device="cuda"))


@pytest.mark.parametrize("given", [ExecutionConfig(), ExecutionConfig(compile="blocks")], ids=["open", "compiled"])
def test_no_time_left_in_the_midst_of_the_compiled_way_is_no_failure(
    timings: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: ExecutionConfig
) -> None:
    """A block that is compiled may be timed whatever is left, and its output layer then finds no time."""

    def loss(self: object, config: ExecutionConfig) -> float:
        raise NoTimeLeft

    monkeypatch.setattr(StepBench, "loss", loss)
    monkeypatch.setattr(settling, "_settle_loss", lambda config, bench, reasons: with_changes(config, loss="plain"))
    found = settle(tmp_path, None, given)
    assert found.config.compile == ("blocks" if given.compile == "blocks" else "none")
    assert "NOT measured" in found.reasons[0]
