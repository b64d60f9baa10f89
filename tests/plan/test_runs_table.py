import json
import math
from pathlib import Path

import numpy as np
import pytest

from shoestring.errors import ShoestringError, UsageError
from shoestring.plan.runs_table import COLUMNS, RunsTable, read_csv, read_folders

CSV = "model,set,size,seen,err\na,web,1e6,2e7,4.0\nb,web,2e6,,3.5\nc,code,4e6,8e7,2.5\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "runs.csv"
    path.write_text(CSV)
    return path


def run(folder: Path, **summary: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('[model]\nvocabulary = 512\n[optim]\nname = "muon"\nlr = 0.02\n')
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_csv_file_is_read_with_our_names_and_units(file: Path) -> None:
    table = read_csv(file, {"parameters": "size", "tokens": "seen", "loss": "err"}, where={"set": "web"}, name="model",
                     factors={"tokens": 2.0})  # fmt: skip
    assert table.names == ("a", "b")
    assert table.column("parameters").tolist() == [1e6, 2e6]
    assert table.column("tokens")[0] == 4e7
    assert math.isnan(table.column("tokens")[1])
    with pytest.raises(UsageError, match="needs 'tokens' of every run, and b has none"):
        table.with_columns(("tokens",), "this law")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda path: read_csv(path, {"loss": "er"}), r"no column 'er'.*err"),
        (lambda path: read_csv(path, {"loss": "model"}), r"line 2: model is 'a', which is no number"),
        (lambda path: read_csv(path, {"loss": "err"}, where={"set": "maths"}), "no runs with set = maths"),
        (lambda path: read_csv(path.with_name("none.csv"), {"loss": "err"}), "cannot be read as a table of runs"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_line(file: Path, wrong: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        wrong(file)  # type: ignore[operator]


def test_an_empty_file_has_no_runs(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text("model,loss\n")
    with pytest.raises(UsageError, match="has no runs"):
        read_csv(tmp_path / "runs.csv", {"loss": "loss"})


def test_columns_follow_from_others() -> None:
    table = RunsTable.of([{"parameters": 10.0, "tokens": 100.0, "epochs": 4.0, "batch": 5.0}])
    assert table.column("compute").tolist() == [6000.0]
    assert table.column("unique").tolist() == [25.0]
    assert table.column("steps").tolist() == [20.0]
    assert table.row(0)["active"] == 10.0
    assert table.adding("compute", np.array([1.0])).column("compute").tolist() == [1.0]
    with pytest.raises(UsageError, match="no column 'los'"):
        table.column("los")
    with pytest.raises(UsageError, match="needs the column 'loss' \\(held-out loss, nats per token\\)"):
        table.with_columns(("loss",), "this law")


def test_tables_are_joined_and_taken_apart() -> None:
    both = RunsTable.of([{"loss": 1.0, "tokens": 2.0}], ["a"]).joined(RunsTable.of([{"loss": 3.0}], ["b"]))
    assert both.names == ("a", "b")
    assert math.isnan(both.column("tokens")[1])
    assert both.select([1]).names == ("b",)
    assert both.select(both.column("loss") < 2).names == ("a",)


def test_run_folders_give_rows(tmp_path: Path) -> None:
    summary = {"parameters": 5000, "tokens": 4096, "steps": 32, "seconds": 4.2, "flops": 8e8, "heldout_loss": 3.5}
    one, other = run(tmp_path / "runs" / "one", **summary), run(tmp_path / "runs" / "other", **summary)
    run(tmp_path / "runs" / "unfinished")
    table = read_folders([tmp_path / "runs"])
    assert table.names == (str(one), str(other))
    row = table.row(0)
    assert (row["loss"], row["compute"], row["batch"], row["learning_rate"]) == (3.5, 8e8, 128.0, 0.02)
    assert row["vocabulary"] == 512
    assert set(table.columns) <= set(COLUMNS)
    assert len(read_folders([one])) == 1


def test_folders_without_finished_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no run in it"):
        read_folders([tmp_path])
    with pytest.raises(UsageError, match="its run is not finished"):
        read_folders([run(tmp_path / "begun")])
    damaged = run(tmp_path / "damaged", tokens=1)
    (damaged / "summary.json").write_text("{")
    with pytest.raises(ShoestringError, match=r"summary\.json"):
        read_folders([damaged])
