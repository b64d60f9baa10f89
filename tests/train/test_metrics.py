"""Every step is in a line of metrics, the last ones as well."""

import json
from pathlib import Path

import pytest

from tests.train.command import TINY
from tests.train.command import shoestring_here as shoestring


def test_the_last_steps_have_a_line_however_short_they_took(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoestring.train.loop.LOG_SECONDS", 1e9)
    run = tmp_path / "run"
    status, _, errors = shoestring("train", "--budget=2ktok", f"--data.corpus={corpus}", "--out", run, *TINY)
    assert status == 0, errors
    steps = json.loads((run / "summary.json").read_text())["steps"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps > 2
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, steps]
