"""What every runner of jobs keeps to: those of this machine, and a fake one on machines that are lost."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from shoestring.errors import ShoestringError, UsageError
from shoestring.jobs.carried import packed, unpack
from shoestring.jobs.job import Job, JobMachine
from shoestring.jobs.processes import Processes
from shoestring.jobs.runner import TRIES, Here, Lost, Runner, elsewhere, in_order
from tests.jobs.losing import Losing

WORKS = "tests.jobs.works"


def jobs(folder: Path, count: int = 4) -> list[Job]:
    return [
        Job(f"job {number}", f"{WORKS}:double", {"number": number}, folder / str(number), leaves=("heavy",))
        for number in range(count)
    ]


RUNNERS: dict[str, Callable[[Path], Runner]] = {
    "here": lambda path: Here(),
    "processes": lambda path: Processes(2, [WORKS]),
    "losing": lambda path: Losing(path, {"job 1": 1, "job 2": TRIES - 1}),
}


@pytest.mark.parametrize("name", RUNNERS)
def test_every_job_is_made_once_with_its_value_and_its_files(name: str, tmp_path: Path) -> None:
    runner = RUNNERS[name](tmp_path)
    asked = jobs(tmp_path / "out")
    found = in_order(runner, asked)
    assert [made.job for made in found] == asked
    assert [made.value for made in found] == [{"twice": 2 * number} for number in range(4)]
    for number, job in enumerate(asked):
        assert job.folder is not None
        assert (job.folder / "number.txt").read_text() == str(2 * number)
        assert (job.folder / "deep" / "bytes").read_bytes() == bytes(range(256))
        assert (job.folder / "heavy").exists() == (name != "losing")
    assert all(made.machine is None or len(made.machine.fingerprint) == 16 for made in found)


def test_lost_jobs_are_named_after_all_others_are_made(tmp_path: Path) -> None:
    runner, found = Losing(tmp_path, {"job 1": TRIES, "job 3": 9}), list[str]()
    with pytest.raises(Lost, match=r"^lost 3 times each, and given up: job 3; job 1 \(no machine\)$") as caught:
        found += [made.job.name for made in runner.map(jobs(tmp_path / "out"))] or []
    assert [job.name for job in caught.value.jobs] == ["job 3", "job 1"]
    assert runner.begun.count("job 0") == 1
    assert runner.begun.count("job 1") == TRIES


def test_a_status_and_a_signal_are_told_and_end_no_other_job(tmp_path: Path) -> None:
    asked = [Job(f"{status}", f"{WORKS}:leave", {"status": status}) for status in (0, 3, -signal.SIGKILL)]
    found = {made.job.name: made for made in Processes(3, [WORKS]).map([*asked, *jobs(tmp_path, 1)])}
    assert {name: made.status for name, made in found.items()} == {"0": 0, "3": 3, "-9": -9, "job 0": 0}
    assert (found["-9"].value, found["-9"].machine) == (None, None)
    with pytest.raises(ShoestringError, match="3 ended with status 3"):
        in_order(Processes(1, [WORKS]), asked)


def test_jobs_are_made_at_once_and_taken_when_there_is_room(tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    pulled = list[int]()

    def coming() -> Iterable[Job]:
        for number in range(4):
            pulled.append(number)
            yield Job(f"{number}", f"{WORKS}:together", {"marks": str(tmp_path / "marks"), "count": 2})

    with closing(Processes(2, [WORKS]).map(coming())) as made:
        next(made)
        assert pulled == [0, 1]
        assert len(list(made)) == 3


def test_an_answer_longer_than_a_pipe_comes_whole() -> None:
    (made,) = Processes(1, [WORKS]).map([Job("long", f"{WORKS}:long_answer", {"length": 300_000})])
    assert made.value == "x" * 300_000


def test_to_close_ends_what_is_under_way(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    waiting = Job("waits", f"{WORKS}:wait_long", {"mark": str(mark)})
    quick = Job("quick", f"{WORKS}:together", {"marks": str(tmp_path / "marks"), "count": 2})
    (tmp_path / "marks").mkdir()
    (tmp_path / "marks" / "one").touch()
    with closing(Processes(2, [WORKS]).map([waiting, quick])) as made:
        assert next(made).job is quick
        while not (mark.exists() and mark.read_text()):
            time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../b", "", "a\\b", "a\0b", ".."])
def test_a_path_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    with pytest.raises(ShoestringError, match="nothing is written"):
        unpack({"fine.txt": b"1", name: b"2"}, folder)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_folder_is_replaced_whole_and_links_are_not_carried(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "stale").touch()
    unpack({"a/b.txt": b"new"}, tmp_path / "old")
    assert packed(tmp_path / "old") == {"a/b.txt": b"new"}
    (tmp_path / "old" / "link").symlink_to("/etc/passwd")
    with pytest.raises(ShoestringError, match="is no file"):
        packed(tmp_path / "old")


@pytest.mark.parametrize(
    ("word", "said"), [("rya", "did you mean 'ray'"), ("local", "--on local"), ("nowhere:1", "local")]
)
def test_a_runner_that_is_not_there_is_refused_in_one_line(word: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        elsewhere(word)


def test_work_that_is_not_there_is_one_line() -> None:
    for work in ("tests.jobs.works:missing", "no.such.module:f", "nothing"):
        with pytest.raises(UsageError, match="cannot be called"):
            next(Here().map([Job("a", work, None)]))


def test_what_json_cannot_hold_is_no_job() -> None:
    for asked in ({"a": object()}, float("nan")):
        with pytest.raises((TypeError, ValueError)):
            next(Here().map([Job("a", f"{WORKS}:double", asked)]))


def test_a_machine_is_told_by_its_fingerprint() -> None:
    here = JobMachine.here()
    assert JobMachine(**json.loads(json.dumps(here.as_json))) == here
    assert "torch" in here.versions


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real: Any = builtins.__import__

    def absent(name: str, *more: Any) -> Any:
        if name == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UsageError, match=r"pip install 'shoestring\[ray\]'"):
        elsewhere("ray")
