"""A sweep through Ray, one of whose workers is killed: the verdict is that of the sweep made alone."""

import json
import os
import signal
import time
from pathlib import Path
from threading import Thread

import psutil
import pytest

from shoestring.errors import ShoestringError
from shoestring.jobs.job import Job
from shoestring.jobs.runner import Lost, elsewhere
from tests.train.command import TINY, shoestring_here

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.processes]

WORD = ":".join(["ray", *([os.environ["SHOESTRING_TEST_RAY"]] if "SHOESTRING_TEST_RAY" in os.environ else [])])
"""SHOESTRING_TEST_RAY is the address of a cluster with two cores on this machine; without it one is started."""

FLAGS = [word for word in TINY if not word.startswith("--train.sample_tokens")]
SEEDS = 6


def kill_a_worker(out: Path, killed: list[int]) -> None:
    """Kill -9 a worker of Ray in the middle of a run, once two runs have been kept."""
    runs, end = out / "runs.jsonl", time.monotonic() + 1800
    while not killed and time.monotonic() < end:
        if runs.exists() and runs.read_bytes().count(b"\n") >= 2:
            for process in psutil.process_iter(["pid", "cmdline"]):
                if (process.info["cmdline"] or [""])[0].startswith("ray::_made_there"):
                    os.kill(process.info["pid"], signal.SIGKILL)
                    killed.append(process.info["pid"])
                    return
        time.sleep(0.02)


def test_a_sweep_with_a_killed_worker_has_the_verdict_of_one_made_alone(corpus: Path, tmp_path: Path) -> None:
    base, slow = tmp_path / "base.toml", tmp_path / "slow.toml"
    base.write_text('[optim]\nname = "adamw"\nlr = 0.01\n[schedule]\nname = "linear"\n')
    slow.write_text("[optim]\nlr = 0.003\n")
    words = [base, slow, "--budget=8ktok", f"--seeds={SEEDS}", f"--data.corpus={corpus}", *FLAGS]
    alone, afar = tmp_path / "alone", tmp_path / "afar"
    status, _, errors = shoestring_here("compare", *words, "--at-once=2", "--out", alone)
    assert status == 0, errors

    killed = list[int]()
    killer = Thread(target=kill_a_worker, args=(afar, killed), daemon=True)
    killer.start()
    status, shown, errors = shoestring_here("compare", *words, "--on", WORD, "--at-once=2", "--out", afar)
    assert status == 0, errors
    killer.join(10)
    assert killed
    assert shown.count("begun anew (2 of 3 times)") == 1, shown

    def runs(folder: Path) -> dict[str, object]:
        lines = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
        told = ("loss", "bits_per_byte", "flops", "tokens", "steps", "stopped")
        return {f"{line['arm']} {line['seed']}": [line[name] for name in told] for line in lines}

    assert len(runs(afar)) == 2 * SEEDS
    assert runs(afar) == runs(alone)  # bit for bit
    verdicts = [json.loads((folder / "verdict.json").read_text()) for folder in (alone, afar)]
    one, other = (verdict["comparisons"][0] for verdict in verdicts)
    for name in ("verdict", "difference", "interval", "p_value", "pairs", "per_seed"):
        assert one[name] == other[name]
    assert len(verdicts[1]["machines"]) == 1
    assert "made on" in shown
    for run in afar.glob("runs/*-seed-*"):
        assert (run / "summary.json").exists()
        assert not (run / "checkpoints").exists()


def test_a_job_that_is_killed_is_begun_anew_and_given_up_after_three_times(tmp_path: Path) -> None:
    def job(name: str, times: int) -> Job:
        (tmp_path / name).mkdir()
        return Job(name, "tests.jobs.works:at_first_lost", {"marks": str(tmp_path / name), "times": times})

    with elsewhere(WORD, at_once=2) as runner:
        assert runner.machines()
        found = list(runner.map([job("once", 1), Job("status", "tests.jobs.works:leave", {"status": 3})]))
        assert {(made.job.name, made.status, made.tries) for made in found} == {("once", 0, 2), ("status", 3, 1)}
        made_before = list[str]()
        with pytest.raises(Lost, match=r"lost 3 times each, and given up: hopeless \(its process was killed\)"):
            for made in runner.map([job("hopeless", 9), job("fine", 0)]):
                made_before.append(made.job.name)
        assert made_before == ["fine"]
        assert len(list((tmp_path / "hopeless").iterdir())) == 3
        folder = tmp_path / "kept"
        (kept,) = runner.map([Job("kept", "tests.jobs.works:double", {"number": 4}, folder, leaves=("heavy",))])
        assert kept.value == {"twice": 8}
        assert sorted(path.name for path in folder.iterdir()) == ["deep", "number.txt"]


def test_an_address_where_no_cluster_is_is_one_line() -> None:
    with pytest.raises(ShoestringError, match=r"--on ray:127\.0\.0\.1:1: no cluster answers there"):
        elsewhere("ray:127.0.0.1:1")
