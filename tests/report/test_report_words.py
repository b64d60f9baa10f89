"""Numbers in words, the headline figures, and what differs between configurations."""

import json
import math
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_runs import CONFIG, make_run

from shoestring.report import facts, quantities
from shoestring.report.differences import differing, flat, marked
from shoestring.report.run_files import read_run

SPACE = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (quantities.plain(3.14159), "3.142"),
        (quantities.plain(-0.5), "−0.500"),
        (quantities.plain(1e300), "1.00×10³⁰⁰"),
        (quantities.plain(math.nan), "not finite"),
        (quantities.plain(None), "–"),
        (quantities.power(1.234e15), "1.23×10¹⁵"),
        (quantities.power(12), "12"),
        (quantities.scaled(4_190_000), "4.19 M"),
        (quantities.scaled(999_999), "1.00 M"),
        (quantities.scaled(7e9), "7.00 B"),
        (quantities.scaled(1.5e9, "B"), "1.50 GB"),
        (quantities.scaled(512), "512"),
        (quantities.scaled(0), "0"),
        (quantities.scaled(math.inf, "B"), "not finite"),
        (quantities.time(125), "2m 05s"),
        (quantities.percent(0.9984), "99.8 %"),
        (quantities.percent(-0.001, 2), "−0.10 %"),
        (quantities.amount("flops", 2e15), "2.00×10¹⁵ FLOPs"),
        (quantities.amount("tokens", 2e6), "2.00 M tokens"),
        (quantities.amount("bytes", None), "–"),
        (facts.signed(0.002), "+0.20 %"),
        (facts.signed(None), "–"),
    ],
)
def test_numbers_are_written_for_people(written: str, expected: str) -> None:
    assert written.replace(SPACE, " ") == expected


def figures(folder: Path) -> dict[str, facts.Figure]:
    return {figure.label: figure for figure in facts.headline(read_run(folder))}


def test_the_headline_sets_what_was_spent_against_the_budget(tmp_path: Path) -> None:
    shown = figures(make_run(tmp_path / "run", seconds=63.0, budget="60s,2.4e15flops"))
    assert shown["Time"].share == pytest.approx(1.05)
    assert shown["Computation"].share == pytest.approx(0.5)
    assert shown["Training tokens"].note == "no limit set"
    assert shown["Overshoot"].value == f"+5.00{SPACE}%"
    assert shown["Overshoot"].note.startswith("past the budget")
    assert shown["Parameters"].value == f"5.25{SPACE}M"
    assert shown["Speed"].value == f"52.0{SPACE}k"


def test_a_run_without_a_summary_shows_its_latest_figures_and_no_overshoot(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", summary=False)
    run, shown = read_run(folder), figures(folder)
    assert facts.state(run)[0] == "not finished"
    assert shown["Held-out loss"].value == quantities.plain(run.heldout[-1]["loss"])
    assert shown["Time"].share == pytest.approx(59 / 60)
    assert "Overshoot" not in shown
    (folder / "ledger.jsonl").unlink()
    assert facts.spent(read_run(folder))["seconds"] == run.train[-1]["seconds"]


def test_a_run_that_was_interrupted_or_failed_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"stopped": "interrupted"}))
    assert facts.state(read_run(folder)) == ("interrupted", "It was interrupted before its budget was spent.")
    (folder / "summary.json").write_text(json.dumps({"stopped": "failed", "reason": "the loss is nan at step 7"}))
    assert facts.state(read_run(folder)) == ("failed", "It failed: the loss is nan at step 7.")
    assert facts.overshoot(read_run(folder)) is None


def test_traffic_is_shown_where_there_was_any(tmp_path: Path) -> None:
    quiet = dict(facts.traffic(read_run(make_run(tmp_path / "quiet"))))
    busy = dict(facts.traffic(read_run(make_run(tmp_path / "busy", sync=True))))
    assert "Bytes sent" not in quiet
    assert busy["Bytes sent"] == f"20.0{SPACE}MB"
    assert busy["of which discarded"] == f"32.8{SPACE}k (1.0{SPACE}%)"


def test_differences_are_found_at_any_depth() -> None:
    one = {"seed": 0, "model": {"layers": 6, "norm": {"name": "rmsnorm"}}}
    two = {"seed": 0, "model": {"layers": 8, "norm": {"name": "rmsnorm", "epsilon": 1e-6}}}
    assert differing([one, two]) == [("model.layers", ["6", "8"]), ("model.norm.epsilon", [None, "1e-06"])]
    assert differing([one, one]) == []


LEAVES = st.one_of(st.integers(-5, 5), st.booleans(), st.text("ab[]=\n# ", max_size=5), st.lists(st.integers(0, 3)))
TREES = st.recursive(LEAVES, lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3))


@given(st.dictionaries(st.text("abc", min_size=1, max_size=2), TREES, max_size=4), st.data())
def test_marked_lines_are_the_settings_asked_for(tree: dict, data: st.DataObject) -> None:
    keys = [key for key, value in flat(tree).items() if not isinstance(value, dict)]
    chosen = frozenset(data.draw(st.lists(st.sampled_from(keys))) if keys else [])
    lines = [line for section in marked(tree, chosen) for line in section]
    assert tomllib.loads("\n".join(line for line, _ in lines)) == tree
    starts = [line for line, on in lines if on and " = " in line and not line.startswith((" ", "]"))]
    assert len(starts) == len(chosen)


def test_every_line_of_an_array_is_marked() -> None:
    sections = marked({"data": {"mix": [1, 2], "seed": 3}}, frozenset({"data.mix"}))
    assert [line for section in sections for line, on in section if on] == ["mix = [", "    1,", "    2,", "]"]


def test_keys_in_quotes_and_tables_in_arrays_are_marked_too() -> None:
    tree = {"packages": {"a b": 1, "c": 2}, "mix": [{"name": "x"}, {"name": "y", "deep": {"part": 3}}], "z": 1}
    on = [line for section in marked(tree, frozenset({"packages.a b", "mix"})) for line, on in section if on]
    assert '"a b" = 1' in on
    assert "part = 3" in "".join(on)
    assert not {"c = 2", "z = 1"} & set(on)


def test_sections_are_kept_apart() -> None:
    sections = marked(tomllib.loads(CONFIG.format(budget="1m", seed=0, optim="muon", lr=0.1)))
    heads = [section[0][0] for section in sections]
    assert heads == ['budget = "1m"', "[model]", "[model.token_mixer]", "[optim]", "[schedule]", "[data]"]
