"""Reading run folders: finished, going on, killed, damaged."""

import json
import math
from pathlib import Path

import pytest
from synthetic_runs import make_run, train_rows, write_lines

from shoestring.errors import ShoestringError, UsageError
from shoestring.report.run_files import column, read_run, read_runs


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def test_a_finished_run_is_read_whole(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "one", sync=True))
    assert run.name == "one"
    assert (len(run.train), len(run.heldout), len(run.samples)) == (400, 8, 3)
    assert run.totals.sent == 20_000_000
    assert run.totals.peak_memory == 900_000_007
    assert run.totals.wall_clock == pytest.approx(59 + 8 * 0.5)
    assert run.limits == {"seconds": 60.0}
    assert run.config["model"]["layers"] == 6


def test_the_totals_are_the_sums_of_the_ledger(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", sync=True)
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    run = read_run(folder)
    for cause in lines[0]["seconds"]:
        assert run.totals.seconds[cause] == pytest.approx(math.fsum(line["seconds"][cause] for line in lines))
    assert run.totals.tokens == sum(line["tokens"] for line in lines)


@pytest.mark.parametrize("torn", ['{"kind": "tra', '{"kind": "train", "loss": "\xe9'.encode()[:-1], b"\0\0\0", b"{"])
def test_a_torn_last_line_is_left_out(tmp_path: Path, torn: str | bytes) -> None:
    folder = make_run(tmp_path / "run")
    before = read_run(folder)
    for name in ("metrics.jsonl", "ledger.jsonl", "samples.jsonl"):
        with open(folder / name, "ab") as file:
            file.write(torn if isinstance(torn, bytes) else torn.encode())
    after = read_run(folder)
    assert (after.train, after.totals, after.samples) == (before.train, before.totals, before.samples)


def test_a_whole_last_line_counts_without_its_newline(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    metrics = folder / "metrics.jsonl"
    write_lines(metrics, train_rows(5, 1.0, 3.0, 0))
    metrics.write_text(metrics.read_text().rstrip("\n"))
    assert len(read_run(folder).train) == 5


@pytest.mark.parametrize("name", ["metrics.jsonl", "ledger.jsonl", "samples.jsonl"])
@pytest.mark.parametrize("bad", ['{"kind": "tra', "[1, 2]", '{"step": "many", "flops": "x"}'])
def test_damage_in_the_middle_names_file_and_line(tmp_path: Path, name: str, bad: str) -> None:
    folder = make_run(tmp_path / "run")
    lines = (folder / name).read_text().splitlines()
    (folder / name).write_text("\n".join([lines[0], bad, *lines[1:]]) + "\n")
    with pytest.raises(ShoestringError, match=rf"{name}, line 2, is damaged") as caught:
        read_run(folder)
    assert caught.value.exit_status == 1
    assert "\n" not in str(caught.value)


def test_a_damaged_last_line_with_its_newline_is_no_torn_one(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    append(folder / "ledger.jsonl", "{]\n")
    with pytest.raises(ShoestringError, match=r"ledger.jsonl, line 9"):
        read_run(folder)


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("summary.json", '{"heldout_loss": 3,\n "steps": }', r"summary.json, line 2"),
        ("summary.json", '{"heldout_loss": "low"}', r"summary.json, line 1.*'heldout_loss' is not a number"),
        ("environment.json", "[]", r"environment.json, line 1"),
        ("decisions.json", '["width"]', r"decisions.json, line 1"),
        ("config.toml", "a = 1\nb =\n", r"config.toml is damaged: .*line 2"),
        ("ledger.jsonl", '{"event": "log", "seconds": 3}\n', r"ledger.jsonl, line 1"),
        ("summary.json", '{"budget": "2 parsecs"}', r"budget of .* cannot be read"),
    ],
)
def test_damage_elsewhere_is_named_too(tmp_path: Path, name: str, text: str, where: str) -> None:
    folder = make_run(tmp_path / "run")
    (folder / name).write_text(text)
    with pytest.raises(ShoestringError, match=where) as caught:
        read_run(folder)
    assert not isinstance(caught.value, UsageError)


def test_a_folder_that_is_no_run_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such run"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"is not a run: it has no config\.toml"):
        read_run(tmp_path)
    with pytest.raises(UsageError, match="name at least one"):
        read_runs([])


def test_steps_done_again_after_a_resume_replace_the_lost_ones(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    first, again = train_rows(10, 1.0, 3.0, 0), train_rows(10, 1.0, 3.0, 1)[6:8]
    write_lines(folder / "metrics.jsonl", first + again)
    append(folder / "ledger.jsonl", '{"event": "resume", "tokens": -16384, "discarded": 16384}\n')
    run = read_run(folder)
    assert run.train == first[:6] + again
    assert run.resumed == 1
    assert run.totals.tokens + run.totals.discarded == 8192 * 400
    assert run.totals.discarded == 16384


def test_a_summary_from_before_a_resume_does_not_count(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    append(folder / "ledger.jsonl", '{"event": "end"}\n')
    assert read_run(folder).summary is not None
    append(folder / "ledger.jsonl", '{"event": "resume"}\n{"event": "train"}\n')
    assert read_run(folder).summary is None
    append(folder / "ledger.jsonl", '{"event": "end"}\n')
    assert read_run(folder).summary is not None


def test_the_budget_is_read_as_amounts_or_as_text_wherever_it_stands(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", summary=False, budget="2m,1e15flops")
    assert read_run(folder).limits == {"seconds": 120.0, "flops": 1e15}
    (folder / "summary.json").write_text('{"budget": {"tokens": 5000, "seconds": null}}')
    assert read_run(folder).limits == {"tokens": 5000.0}
    (folder / "summary.json").unlink()
    (folder / "config.toml").write_text('[train]\nbudget = "90s"\n')
    assert read_run(folder).limits == {"seconds": 90.0}


def test_a_column_has_a_nan_where_there_is_no_number() -> None:
    values = column([{"loss": 1}, {}, {"loss": None}, {"loss": math.inf}], "loss")
    assert values.tolist()[0] == 1.0
    assert [math.isnan(value) for value in values] == [False, True, True, False]


def test_runs_of_the_same_name_are_told_apart_and_each_read_once(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run")
    runs = read_runs([one, two, one / ".." / "run"])
    assert [run.name for run in runs] == ["a/run", "b/run"]
