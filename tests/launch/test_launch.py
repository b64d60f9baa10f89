"""Runs started from Python, without the command line."""

import json
import logging
from pathlib import Path

import pytest

from shoestring.config import overrides
from shoestring.errors import UsageError
from shoestring.launch.elastic import Hosting
from shoestring.launch.launch import Launch
from shoestring.launch.request import TrainingRequest
from tests.train.command import TINY, newest_weights


def request(corpus: Path, *flags: str) -> TrainingRequest:
    return TrainingRequest.of(overrides(["--budget=2ktok", f"--data.corpus={corpus}", *TINY, *flags]))


def test_a_run_is_shown_to_a_log_and_locked_until_the_launch_is_left(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "shoestring"):
        with Launch() as launch:
            ended = launch.begin(request(corpus), tmp_path / "run")
            assert ended.leads
            with pytest.raises(UsageError, match="is at work in"), ended.folder.held():
                pass
        with ended.folder.held():
            pass
    assert ended.outcome.stopped == "finished"
    assert f"run: {tmp_path / 'run'}" in caplog.messages
    assert any("'kind': 'heldout'" in line for line in caplog.messages)
    with Launch() as launch, pytest.raises(UsageError, match="has finished"):
        launch.resume(tmp_path / "run")


@pytest.mark.processes
def test_a_crew_trains_as_one_process_with_all_workers(corpus: Path, tmp_path: Path) -> None:
    flags = "--workers=2 --sync=muloco --sync.every=4 --train.batch=8".split()
    with Launch() as launch:
        ended = launch.begin(request(corpus, *flags), tmp_path / "crew")
        alone = launch.begin(request(corpus, *flags, "--transport=local"), tmp_path / "alone")
        assert (ended.leads, alone.leads) == (False, True)
        assert ended.outcome.summary == json.loads((tmp_path / "crew" / "summary.json").read_text())
        assert ended.outcome.summary["processes"] == 2
    assert newest_weights(tmp_path / "crew") == newest_weights(tmp_path / "alone")


def test_options_of_another_way_are_refused(corpus: Path, tmp_path: Path) -> None:
    with (
        Launch(hosting=Hosting(restart=True)) as launch,
        pytest.raises(UsageError, match="go with --transport torchft"),
    ):
        launch.begin(request(corpus), tmp_path / "run")
