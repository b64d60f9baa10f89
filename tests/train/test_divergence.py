import json
import math
from pathlib import Path

import pytest

from shoestring.cli.main import main
from shoestring.train.health import Diverged, LossWatch
from tests.train.command import TINY


def test_a_loss_that_is_not_finite_or_rises_far_stops() -> None:
    watch = LossWatch(spike=1.0)
    with pytest.raises(Diverged, match="loss is nan at step 1"):
        watch.look(1, math.nan, 1.0)
    with pytest.raises(Diverged, match="gradient norm is inf"):
        watch.look(1, 1.0, math.inf)
    for step in range(50):
        watch.look(step, 3.0, 1.0)
    with pytest.raises(Diverged, match="has risen"):
        for step in range(50, 90):
            watch.look(step, 5.0, 1.0)
    calm = LossWatch(spike=1.0)
    calm.restore(watch.state())
    assert calm.state() == watch.state()
    for step in range(300):  # noise and a single outlier are no spike
        LossWatch(1.0).look(step, 3.0, 1.0)


def test_a_run_that_diverges_keeps_its_checkpoint_and_says_what_to_do(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["train", "--budget=2Mtok", f"--data.corpus={corpus}", "--out", str(run), "--train.checkpoint_every=0.01"]
    wild = ["--optim", "adamw", "--optim.lr", "1e4", "--train.gradient_clip=1e9", "--train.spike=3"]
    assert main([*words, *wild, *TINY]) == 1
    line = capsys.readouterr().err
    assert "--optim.lr 5000" in line
    assert "is kept" in line
    assert json.loads((run / "summary.json").read_text())["stopped"] == "failed"
    assert list((run / "checkpoints").iterdir())
