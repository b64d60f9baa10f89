"""The page of a comparison: self-contained, the same every time, true to the files, for two arms and for twenty."""

import json
import re
from pathlib import Path

import pytest
from synthetic_comparisons import ADAMW, MUON, Way, make_comparison, many
from test_report_page import Page

from shoestring.compare import Design, RunRecord, judge
from shoestring.errors import ShoestringError, UsageError
from shoestring.report.comparison_page import write_comparison

LRS = (3e-4, 1e-3, 3e-3)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ways = [Way("adamw", optim=ADAMW.optim, tune=LRS), Way("muon", -0.05, optim=MUON.optim, tune=LRS, edge=True)]
    return write_comparison(make_comparison(tmp_path_factory.mktemp("two") / "two", ways)).parent


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_comparison(tmp_path_factory.mktemp("twenty") / "twenty", many(19), seeds=3, unit="tokens")
    return write_comparison(folder).parent


@pytest.mark.parametrize("which", ["two", "twenty"])
def test_a_page_is_one_file_that_asks_for_nothing(which: str, request: pytest.FixtureRequest) -> None:
    page = Page(request.getfixturevalue(which) / "report.html")
    assert page.loads == []
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert len(set(page.ids)) == len(page.ids)
    assert page.references == set(page.ids)
    assert not re.search(r"https?:|@import|url\((?!#)", page.source)
    for svg in re.findall(r"<svg.*?</svg>", page.source, flags=re.DOTALL):
        assert not re.search(r"#[0-9a-f]{6}\b", svg)
    used, defined = (set(re.findall(pattern, page.source)) for pattern in (r"var\(--(\w+)\)", r"--(\w+): #"))
    assert used <= defined


def test_the_page_lies_in_the_folder_and_is_the_same_each_time(two: Path) -> None:
    assert write_comparison(two) == two / "report.html"
    before = (two / "report.html").read_bytes()
    assert write_comparison(two).read_bytes() == before
    assert [path.name for path in two.glob(".*")] == []


def test_two_arms_say_what_the_files_say(two: Path) -> None:
    page = Page(two / "report.html")
    verdict = json.loads((two / "verdict.json").read_text())
    one = verdict["comparisons"][0]
    text = page.text
    assert text.index(verdict["statement"]) < text.index("The effect")
    assert f"{one['difference']:.3f}".replace("-", "−") in text
    assert f"{one['interval'][0]:.3f} to {one['interval'][1]:.3f}".replace("-", "−") in text
    assert "● better" in text
    assert f"≥ {one['speed_up']['ratio']:.2f}×" in text
    for words in (
        "muon against adamw",
        "−12.5 MB",
        "+4.2 ms",
        "3m 00s for every run",
        "95 % confidence",
        one["sentence"],
    ):
        assert words in text
    assert "'muon' is best at the edge" in text
    assert "optim.name adamw muon" in text
    assert "optim.lr 0.001 0.003" in text, "as judged, with what tuning chose"
    assert "shoestring compare --from ." in text
    assert "packages.torch 2.13.0" in text
    assert text.count("Chosen: optim.lr") == 2
    assert page.source.count("<svg") == 2 + 2 + 2, "intervals and curves wide and narrow, a tuning curve for each arm"


def test_twenty_arms_get_a_panel_each_and_a_tally(twenty: Path) -> None:
    page = Page(twenty / "report.html")
    verdict = json.loads((twenty / "verdict.json").read_text())
    names = [one["candidate"] for one in verdict["comparisons"]]
    assert len(names) == 19
    headings = re.findall(r"<h3>([^<]*)</h3>", page.source)
    assert all(headings.count(name) >= 1 for name in names)
    assert "19 candidates against adamw" in page.text
    opening = page.text[: page.text.index("The effect")]
    assert all(name in opening for name in names)
    assert "drawn on its own" in opening
    panel = re.search(r"<h3>lion</h3>.*?</figure>", page.source, flags=re.DOTALL)
    assert panel is not None
    assert "on a scale of its own" in panel[0]
    assert max(float(tick) for tick in re.findall(r">(\d\.\d+|\d)</text>", panel[0])) >= 5, "it ends at 5.1 nats"
    assert "it spent 3.2 % less time than the base" in page.text
    tuned = sum(arm["tuning"] is not None for arm in verdict["arms"].values())
    assert page.source.count("<svg") == 2 + 19 + tuned


def test_a_page_says_first_that_nothing_was_tuned(tmp_path: Path, two: Path) -> None:
    said = "Nothing was tuned: each arm ran"
    for place, ways in enumerate(([ADAMW, MUON], [ADAMW, *(Way(f"m{i}", optim=MUON.optim) for i in range(6))])):
        text = Page(write_comparison(make_comparison(tmp_path / f"{place}", ways))).text
        assert text.count(said) == 1
        later = ("The effect", "Verdicts", "no difference", "better")
        assert text.index(said) < min(text.index(word) for word in later if word in text)
    statement = f"{said} as it did. At 1m 00s a run: no more."
    already = make_comparison(tmp_path / "already", [ADAMW, MUON], statement=statement)
    assert Page(write_comparison(already)).text.count(said) == 1
    assert said not in Page(two / "report.html").text


def test_the_caption_of_the_curves_tells_what_is_drawn(tmp_path: Path) -> None:
    one = Page(write_comparison(make_comparison(tmp_path / "one", [ADAMW, MUON], seeds=1))).text
    assert "One seed. The frame" in one
    assert "Bold" not in one
    more = Page(write_comparison(make_comparison(tmp_path / "more", [ADAMW, Way("lion", fails=1)], seeds=3))).text
    assert "Thin: each seed. Bold: their mean. Dashed, ending in a cross: a run that failed." in more


def test_failures_and_edges_are_told_even_where_no_flag_does(tmp_path: Path) -> None:
    ways = [ADAMW, Way("lion", fails=2, tune=LRS, edge=True, optim={"name": "lion", "lr": 1.0})]
    folder = make_comparison(tmp_path / "one", ways)
    verdict = json.loads((folder / "verdict.json").read_text())
    verdict["comparisons"][0]["flags"] = []
    verdict["arms"]["lion"]["tuning"]["tried"][0]["loss"] = None
    (folder / "verdict.json").write_text(json.dumps(verdict))
    text = Page(write_comparison(folder)).text
    assert "2 runs failed (the loss is not finite" in text
    assert "tuning chose the edge of what was tried: optim.lr = 3e-3" in text
    assert "1 of 3 tuning runs failed" in text
    level = make_comparison(tmp_path / "level", [ADAMW, Way("again", optim=ADAMW.optim)])
    text = Page(write_comparison(level)).text
    assert "Nothing was flagged" in text
    assert "its configuration is the base's" in text


def test_an_interval_of_its_own_confidence_says_so(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "one", sequential=True)
    verdict = json.loads((folder / "verdict.json").read_text())
    verdict["comparisons"][0]["confidence"] = 0.983
    (folder / "verdict.json").write_text(json.dumps(verdict))
    text = Page(write_comparison(folder)).text
    assert "(98.30 %)" in text
    assert "seeds were added until it was decided" in text


@pytest.mark.parametrize("unit", ["seconds", "flops", "tokens"])
def test_arms_that_all_failed_leave_a_page(tmp_path: Path, unit: str) -> None:
    ways = [ADAMW, Way("muon", fails=3, optim=MUON.optim), Way("gone", fails=3, optim={"name": "gone"})]
    folder = make_comparison(tmp_path / "one", ways, seeds=3, unit=unit)
    assert Page(write_comparison(folder)).text.count("× not comparable") == 2
    everyone = make_comparison(tmp_path / "all", [Way("a", fails=2), Way("b", fails=2)], seeds=2, unit=unit)
    for run in (lines := (everyone / "runs.jsonl").read_text().splitlines()):
        assert json.loads(run)["stopped"] == "failed"
    without = [json.dumps({**json.loads(line), "curve": []}) + "\n" for line in lines]
    (everyone / "runs.jsonl").write_text("".join(without))
    assert "Held-out loss through the runs" not in Page(write_comparison(everyone)).text


def test_names_are_shown_not_obeyed(tmp_path: Path) -> None:
    ways = [ADAMW, Way("<b>&'x", -0.05, optim={"name": "</td><script>"}, flags=("<img src=x>",), tune=LRS)]
    page = Page(write_comparison(make_comparison(tmp_path / "one", ways, statement="<u>won</u> & all")))
    assert not {"script", "img", "u"} & set(page.tags)
    assert "<u>won</u> & all" in page.text
    assert "<b>&'x against adamw" in page.text


def test_what_compare_writes_can_be_drawn(tmp_path: Path) -> None:
    ways = [
        Way("adamw", optim=ADAMW.optim, tune=LRS),
        Way("muon", -0.1, tune=LRS, edge=True),
        Way("lion", fails=1, tune=LRS),
    ]
    folder = make_comparison(tmp_path / "one", ways)
    records = [RunRecord(**json.loads(line)) for line in (folder / "runs.jsonl").read_text().splitlines()]
    tries = {way.name: tuple({"optim.lr": lr} for lr in way.tune) for way in ways}
    names, seeds = tuple(way.name for way in ways), tuple(range(5))
    design = Design(arms=names, seeds=seeds, unit="seconds", amount=180.0, tuning=tries, tuning_seed=1000)
    verdict = judge(records, design).to_json()
    (folder / "verdict.json").write_text(json.dumps(verdict))
    text = Page(write_comparison(folder)).text
    assert " ".join(verdict["statement"].split()) in text
    for one in verdict["comparisons"]:
        assert " ".join(one["sentence"].split()) in text
        assert all(flag in text for flag in one["flags"])


def test_damage_and_a_page_that_cannot_be_written_are_errors_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such comparison"):
        write_comparison(tmp_path / "nowhere")
    folder = make_comparison(tmp_path / "one")
    (folder / "report.html").mkdir()
    with pytest.raises(ShoestringError, match="cannot be written") as caught:
        write_comparison(folder)
    assert "\n" not in str(caught.value)
    (folder / "runs.jsonl").unlink()
    with pytest.raises(ShoestringError, match=r"runs\.jsonl is missing"):
        write_comparison(folder)
