"""The sweep over rates and batches: what is tried, what is found, and that it stays within the budget."""

import json
import math
from pathlib import Path

import pytest

from shoestring.errors import UsageError
from shoestring.tune.rate_to_batch import RateAndBatch, RateToBatch
from tests.train.command import TINY
from tests.train.command import shoestring_here as shoestring


def test_what_is_tried_and_found() -> None:
    sweep = RateToBatch(rates=(0.5, 1, 2), batches=(0.5, 2))
    settings = sweep.settings(1e-3, 4)
    assert sorted(settings) == sorted(RateAndBatch(rate, batch) for rate in (5e-4, 1e-3, 2e-3) for batch in (2, 8))
    assert [one.ratio for one in settings] == sorted(one.ratio for one in settings)
    # a bowl in the logarithm of the ratio whose least is at 2.5e-4
    bowl = [(one, (math.log(one.ratio) - math.log(2.5e-4)) ** 2 + 1) for one in settings]
    found = sweep.found(bowl)
    assert found.fitted == pytest.approx(2.5e-4)
    assert found.best.ratio == 2.5e-4
    assert not found.edge
    rising = sweep.found([(one, one.ratio) for one in settings])
    assert rising.edge
    assert rising.best.ratio == min(one.ratio for one in settings)
    failed = sweep.found([(one, value if one.batch == 8 else math.inf) for one, value in bowl])
    assert failed.best == RateAndBatch(2e-3, 8)
    assert sweep.transferred(found.best.ratio, 32) == pytest.approx(8e-3)
    with pytest.raises(UsageError, match="no setting of the sweep came to an end"):
        sweep.found([(one, math.inf) for one in settings])
    assert len(RateToBatch(batches=(0.1, 0.2)).settings(1.0, 4)) == 3  # batches of 1 twice are one


def test_a_sweep_and_the_run_after_it_share_a_budget(corpus: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    status, _, errors = shoestring("train", "--budget=2ktok", f"--data.corpus={corpus}", *TINY, "--out", base)
    assert status == 0, errors
    small = "--execution.compile=none --execution.attention=flash --execution.loss=plain --execution.precision=float32"
    on = (
        "tune", base, f"--data.corpus={corpus}", "--old", corpus, "--budget=3ktok", "--train.batch=2", "--model.context=16",
        "--train.heldout_tokens=64", "--old.tokens=64", "--optim.lr=0.01", *small.split(), "--json",
    )  # fmt: skip
    status, shown, errors = shoestring(*on, "--sweep=0.4", "--out", tmp_path / "run")
    assert status == 0, errors
    found = json.loads(shown)
    assert found["sweep"]["found"].keys() == {"new", "old"}
    assert len(found["sweep"]["tried"]) == 6
    best = min(found["sweep"]["tried"], key=lambda one: one["new"])
    config = (tmp_path / "run" / "config.toml").read_text()
    assert f"batch = {best['batch']}" in config
    assert found["sweep"]["spent"]["tokens"] + found["tokens"] == pytest.approx(3000, abs=7 * 64)
    assert found["tokens"] == pytest.approx(1800, abs=64)
    again, _, errors = shoestring(*on, "--sweep=2", "--out", tmp_path / "other")
    assert again == 2
    assert "a share of the budget" in errors
