"""What a report says and draws of the processes of a run, from files made up for the test."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import make_run, write_lines

from shoestring.budget.timeline import OWN, PhaseStretch
from shoestring.cli.main import main
from shoestring.errors import ShoestringError
from shoestring.report.diagnosis import one_line, shown
from shoestring.report.page import write_report
from shoestring.report.processes import heat_table, read_processes
from shoestring.report.run_files import read_run
from shoestring.report.timeline_figure import MOST, drawn, span, strips

STEPS = 40


def timeline(rank: int, data: float = 0.002) -> list[dict[str, Any]]:
    """Steps of 100 ms, in which a process reads for `data` seconds and waits for the slowest of all."""
    rows: list[dict[str, Any]] = [{"rank": rank, "host": f"host-{rank}", "offset": 0.0, "offset_error": 0.0}]
    stretches = []
    for step in range(STEPS):
        at, seconds = 0.1 * step, {}
        for phase, took in zip((*OWN, "communication"), (data, 0.05, 0.008, 0.042 - data), strict=True):
            stretches.append({"phase": phase, "step": step, "begin": round(at, 6), "end": round(at + took, 6)})
            seconds[phase] = took
            at += took
        rows.append({"step": step, "seconds": seconds})
    return [*rows, *stretches]


def run_of(
    folder: Path, ranks: int = 3, *, slow: int | None = None, events: list[dict[str, Any]] | None = None
) -> Path:
    make_run(folder, sync=True)
    for rank in range(ranks):
        own = folder if rank == 0 else folder / "workers" / str(rank)
        own.mkdir(parents=True, exist_ok=True)
        write_lines(own / "timeline.jsonl", timeline(rank, 0.04 if rank == slow else 0.002))
    if events:
        write_lines(folder / "events.jsonl", events)
    return folder


EVENTS = [
    {"event": "straggler", "rank": 1, "host": "host-1", "step": 32, "phase": "data", "share": 0.63, "seconds": 0.038},
    {"event": "restart", "rank": 2, "frozen": True, "goes_on": 20, "host": "host-2", "phase": "optimiser", "step": 21},
]


def test_the_slow_one_is_named_and_stands_out_in_the_table(tmp_path: Path) -> None:
    run = read_run(run_of(tmp_path / "run", slow=1, events=EVENTS))
    columns, rows = heat_table(run.processes.each)
    assert columns == [*OWN, "own work", "communication"]
    told = {
        (process.rank, name) for process, cells in rows for name, cell in zip(columns, cells, strict=True) if cell.told
    }
    assert told == {(1, "data"), (1, "own work")}
    data = rows[1][1][0]
    assert (data.milliseconds, data.more) == (pytest.approx(40), pytest.approx(0.038 / 0.06))
    assert [cells[-1].heat for _, cells in rows] == [0, 0, 0], "who waits long is not slow"
    page = shown(run)
    assert page is not None
    lines = " ".join(page["lines"])
    assert "Rank 1 (host-1) held the others up in 'data', 63 % above the others, by step 32." in lines.replace(
        "\xa0", " "
    )
    assert "Rank 2 (host-2) was frozen in 'optimiser' of step 21: the run went on from step 20." in lines
    assert "Goodput: " in lines


def test_the_page_and_the_terminal_show_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of(tmp_path / "run", slow=1, events=EVENTS)
    assert main(["report", str(folder)]) == 0
    path, line = capsys.readouterr().out.splitlines()
    assert path == str(folder / "report.html")
    assert "rank 1 (host-1) held the others up in 'data'" in line
    html = (folder / "report.html").read_text()
    picture = re.search(
        r'<svg [^>]*aria-label="The last steps, process by process[^"]*rank 1: data 40.0 ms.*?</svg>', html, re.S
    )
    assert picture is not None
    for word in ("rank 0", "rank 2", "step 39", "forward and backward", "communication", "milliseconds"):
        assert f">{word}<" in picture[0], word
    colours = set(re.findall(r"fill: var\(--(s\d)\)", picture[0]))
    assert colours == {"s1", "s2", "s3", "s8"}, "each phase has its colour, light and dark"
    assert "+63" in html
    before = html
    assert write_report([folder]).read_text() == before


def test_a_run_of_one_process_has_no_such_section(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    assert (shown(run), one_line(run)) == (None, "")
    assert "Its processes" not in write_report([tmp_path / "run"]).read_text()


def test_where_nobody_is_slow_that_is_said_after_steps_enough(tmp_path: Path) -> None:
    assert one_line(read_run(run_of(tmp_path / "run"))).endswith("no process held the others up")


def test_of_many_processes_the_extremes_are_drawn(tmp_path: Path) -> None:
    each = read_run(run_of(tmp_path / "run", 40, slow=17)).processes.each
    assert [process.rank for process in each] == list(range(40))
    some = drawn(each)
    assert len(some) == MOST
    assert 17 in [process.rank for process in some]


def test_the_last_steps_that_all_took_are_drawn(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 2)
    rows = [row for row in timeline(1) if row.get("step", 0) < STEPS - 2]
    write_lines(folder / "workers" / "1" / "timeline.jsonl", rows)  # it was killed two steps before
    found = span(read_processes(folder).each)
    assert found == (pytest.approx(0.1 * (STEPS - 6)), pytest.approx(0.1 * (STEPS - 2) - 0.04))


def test_strips_join_neighbours_and_leave_gaps() -> None:
    stretches = [
        PhaseStretch("data", 0, 0.0, 0.25),
        PhaseStretch("data", 0, 0.25, 0.5),
        PhaseStretch("optimiser", 0, 0.75, 1.5),
    ]
    assert strips(stretches, 0.0, 1.0) == [("data", 0.0, 0.5), ("optimiser", 0.75, 1.0)]
    assert strips(stretches, 2.0, 3.0) == []


@pytest.mark.parametrize(
    "bad",
    [
        {"phase": "data", "step": 1, "begin": 2.0, "end": 1.0},
        {"phase": "data", "step": 1, "begin": float("nan"), "end": 1.0},
        {"phase": "data", "step": 1, "begin": 0.0, "end": 1e300},
        {"phase": ["data"], "step": 1, "begin": 0.0, "end": 1.0},
        {"phase": "data", "begin": 0.0, "end": 1.0},
        {"step": 1, "seconds": {"data": "long"}},
        {},
    ],
)
def test_damage_names_file_and_line(tmp_path: Path, bad: dict[str, Any]) -> None:
    folder = run_of(tmp_path / "run")
    path = folder / "workers" / "2" / "timeline.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:5], json.dumps(bad), *lines[5:], ""]))
    with pytest.raises(ShoestringError, match=r"2/timeline.jsonl, line 6, is damaged"):
        read_run(folder)


def test_events_that_make_no_sense_are_shown_as_they_are(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = [
        {"event": "straggler", "rank": None, "phase": {"a": [1]}, "share": float("nan")},
        {"event": ["x"]},
        {},
    ]
    folder = run_of(tmp_path / "run", events=events)
    assert "not finite" in one_line(read_run(folder))
    write_report([folder])
