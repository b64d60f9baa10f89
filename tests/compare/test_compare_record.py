import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_objective import record

from shoestring.compare import RunLog, RunRecord
from shoestring.errors import ShoestringError

numbers = st.floats(0, 1e20)
values = st.one_of(
    st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
points = st.dictionaries(st.sampled_from(["progress", "seconds", "flops", "tokens", "loss"]), st.floats())
records = st.builds(
    RunRecord,
    arm=st.text(),
    seed=st.integers(0, 2**31),
    purpose=st.sampled_from(["tune", "judge"]),
    settings=st.dictionaries(st.text(), values, max_size=3),
    stopped=st.sampled_from(["finished", "failed"]),
    reason=st.text(),
    loss=st.none() | st.floats(),
    bits_per_byte=st.none() | st.floats(),
    seconds=numbers,
    flops=numbers,
    tokens=st.integers(0, 2**60),
    steps=st.integers(0, 2**40),
    step_seconds=st.none() | st.floats(),
    peak_memory=st.integers(0, 2**50),
    parameters=st.integers(0, 2**50),
    curve=st.lists(points, max_size=3).map(tuple),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(records, max_size=4, unique_by=lambda one: one.key))
def test_what_is_appended_is_read_back_and_is_strict_json(
    tmp_path_factory: pytest.TempPathFactory, runs: list[RunRecord]
) -> None:
    path = tmp_path_factory.mktemp("log") / "runs.jsonl"
    log = RunLog(path)
    for run in runs:
        log.append(run)
    assert log.read() == runs
    assert RunLog(path).read() == runs

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    for line in path.read_text().splitlines() if runs else []:
        json.loads(line, parse_constant=refuse)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_file_cut_at_any_byte_keeps_its_whole_lines_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("log") / "runs.jsonl"
    runs = [record("adamw", seed, 3.0 + seed) for seed in range(4)]
    log = RunLog(path)
    for run in runs:
        log.append(run)
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")
    again = RunLog(path)
    assert again.read() == runs[:whole]
    for run in runs[whole:]:
        again.append(run)
    assert path.read_bytes() == content


def test_reading_leaves_a_torn_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    RunLog(path).append(record("adamw", 0, 3.0))
    torn = path.read_bytes() + b'{"arm": "mu'
    path.write_bytes(torn)
    assert len(RunLog(path).read()) == 1
    assert path.read_bytes() == torn
    assert RunLog(tmp_path / "absent.jsonl").read() == []
    assert not (tmp_path / "absent.jsonl").exists()


def _without(key: str) -> bytes:
    row = json.loads(_line())
    del row[key]
    return json.dumps(row).encode()


def _line(**changed: object) -> bytes:
    log = RunLog()
    log.append(record("adamw", 0, 3.0))
    run = log.read()[0]
    return json.dumps({**{key: getattr(run, key) for key in run.__dataclass_fields__}, **changed}).encode()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"not json", "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "not an object"),
        (_without("loss"), "'loss' is missing"),
        (_line(mood="good"), "'mood' is not a part of a run"),
        (_line(seed="one"), "seed: "),
        (_line(stopped="tired"), "stopped: "),
        (_line(seconds=-1.0), "cannot have spent -1 seconds"),
        (_line(seed=1), "the same run stands above it"),
    ],
)
def test_a_damaged_line_is_named_in_one_line(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "runs.jsonl"
    RunLog(path).append(record("adamw", 1, 3.0))
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ShoestringError) as caught:
        RunLog(path)
    assert str(caught.value).startswith(f"{path}, line 2, is damaged: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_append_is_on_the_disk_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "runs.jsonl", []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(path.read_bytes()), sync(handle)))  # type: ignore[func-returns-value]
    RunLog(path).append(record("adamw", 0, 3.0))
    assert synced == [path.read_bytes()]


def test_a_loss_that_is_not_finite_is_no_result() -> None:
    run = record("adamw", 0, math.nan)
    assert (run.stopped, run.loss, run.complete, run.failure) == ("finished", None, False, "its loss is not finite")
    assert record("adamw", 0, None, reason="killed\nby the kernel").failure == "killed by the kernel"
    with pytest.raises(ValueError, match="nan flops"):
        record("adamw", 0, 3.0, flops=math.nan)


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ShoestringError, match="cannot be"):
        RunLog(tmp_path / "file" / "runs.jsonl").append(record("adamw", 0, 3.0))
