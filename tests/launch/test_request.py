"""What a plan need not measure twice."""

from pathlib import Path

import pytest

from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import Machine
from shoestring.config import overrides
from shoestring.launch import request as requests
from shoestring.launch.request import TrainingRequest, prepared, tried
from shoestring.plan.pace import MeasuredPaces
from tests.train.command import TINY

MACHINE = Machine("cpu", "a laptop", 1, 2**34, (), {"float32": 1e11, "bfloat16": 1e11}, 1e10)


def test_a_pace_is_measured_once(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    asked = TrainingRequest.of(overrides(["--budget=60s", f"--data.corpus={corpus}", *TINY]))
    ledger = Ledger()
    dataset = prepared(asked, ledger.clock("data"))
    first, _ = tried(asked, MACHINE, dataset, ledger, MeasuredPaces("cpu"))
    assert first.pace.measured
    monkeypatch.setattr(requests, "try_out", lambda *given: pytest.fail("measured again"))
    second, _ = tried(asked, MACHINE, dataset, Ledger(), MeasuredPaces("cpu"))
    assert second.pace == first.pace
    other = TrainingRequest.of(overrides(["--budget=60s", f"--data.corpus={corpus}", *TINY, "--model.width=64"]))
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        tried(other, MACHINE, dataset, Ledger(), MeasuredPaces("cpu"))
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        tried(asked, MACHINE, dataset, Ledger(), MeasuredPaces("cpu", again=True))
    (tmp_path / next(path.name for path in tmp_path.glob("paces-*"))).write_text("{")
    assert MeasuredPaces("cpu").get("any") is None
