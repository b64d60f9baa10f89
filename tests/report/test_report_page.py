"""The page as a whole: self-contained, the same every time, true to the files, safe with what a model writes."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_runs import make_run, write_lines

from shoestring.errors import ShoestringError, UsageError
from shoestring.report import page, write_report

VOID = {"meta", "br", "img", "input", "hr", "link"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers ids, references, attributes that could load something, and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: set[str] = set()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            self.references |= set(re.findall(r"url\(#([^)]+)\)", value or ""))
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "xlink:href") and (value or "").startswith("#"):
                self.references.add((value or "")[1:])
            elif name in ("src", "href", "xlink:href", "srcset", "data", "action") or name.startswith("on"):
                self.loads.append(f"{tag} {name}={value}")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\N{NO-BREAK SPACE}", " ").split())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [
        make_run(root / "muon", sync=True),
        make_run(root / "adamw", optim="adamw", lr=0.001, floor=2.8, seed=1),
        make_run(root / "killed", steps=120, seconds=18.0, floor=2.0, summary=False, seed=2),
    ]


def test_a_page_holds_all_it_needs_and_nothing_that_loads(folders: list[Path], tmp_path: Path) -> None:
    for runs in (folders[:1], folders):
        page = Page(write_report(runs, tmp_path / "page.html"))
        assert page.loads == []
        assert "script" not in page.tags
        assert len(set(page.ids)) == len(page.ids)
        assert page.references == set(page.ids)
        assert not re.search(r"https?:|@import|url\((?!#)", page.source)
        assert "default-src 'none'" in page.source


def test_figures_take_every_colour_and_the_font_from_the_page(folders: list[Path], tmp_path: Path) -> None:
    page = Page(write_report(folders, tmp_path / "page.html"))
    for svg in re.findall(r"<svg.*?</svg>", page.source, flags=re.DOTALL):
        assert not re.search(r"#[0-9a-f]{6}\b", svg)
        assert "font-family" not in svg
        assert 'aria-label="' in svg
    used, defined = (set(re.findall(pattern, page.source)) for pattern in (r"var\(--(\w+)\)", r"--(\w+): #"))
    assert used <= defined
    assert "prefers-color-scheme: dark" in page.source


def test_the_same_files_give_the_same_bytes(folders: list[Path], tmp_path: Path) -> None:
    settings = tmp_path / "matplotlibrc"
    settings.write_text("font.size: 30\naxes.facecolor: red\nsvg.fonttype: path\naxes.linewidth: 4\n")
    pages: list[tuple[bytes, Path]] = []
    for place, runs in enumerate((folders[:1], folders)):
        here = write_report(runs, tmp_path / f"here{place}.html").read_bytes()
        assert write_report(runs, tmp_path / f"here{place}.html").read_bytes() == here
        there = tmp_path / f"there{place}.html"
        pages.append((here, there))
    code = "import sys; from pathlib import Path; from shoestring.report import write_report as w;"
    code += "one, both, *runs = map(Path, sys.argv[1:]); w(runs[:1], one); w(runs, both)"
    environment = os.environ | {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(settings)}
    words = [*(there for _, there in pages), *folders]
    subprocess.run([sys.executable, "-c", code, *words], check=True, env=environment)
    for here, there in pages:
        assert there.read_bytes() == here


def test_a_page_of_one_run_says_what_the_files_say(folders: list[Path], tmp_path: Path) -> None:
    summary = json.loads((folders[0] / "summary.json").read_text())
    text = Page(write_report(folders[:1], tmp_path / "page.html")).text
    assert f"{summary['heldout_loss']:.3f} nats per token" in text
    assert "Trained until its budget of 1m 00s was spent." in text
    assert "98.3 % of the budget of 1m 00s" in text
    assert "1.20×10¹⁵ FLOPs" in text
    for cause in ("computing", "evaluating", "waiting for exchange", "saving checkpoints", "idle", "exchange, hidden"):
        assert cause in text
    assert "The causes add up to 1m 03s of wall clock." in text
    assert "Bytes received 40.0 MB" in text
    assert "token_mixer" in text
    assert "packages.torch 2.13.0" in text


def test_what_a_model_writes_is_shown_not_obeyed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "<b>run")
    raw = '{"step": 9, "prompt": "<img src=x>", "text": "</main><script>go()</script>\\u0000\\u001b\\ud800 & end"}\n'
    (folder / "samples.jsonl").write_text(raw)
    (folder / "decisions.json").write_text('[{"key": "<i>k", "value": {"a": 1}, "reason": "</td><script>"}]')
    page = Page(write_report([folder]))
    assert not {"script", "img", "b", "i"} & set(page.tags)
    assert "</main><script>go()</script>␀␛? & end" in page.text
    assert '<i>k {"a": 1} </td><script>' in page.text
    assert "\0" not in page.source


def test_what_a_model_writes_keeps_its_indentation(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    sample = {"step": 9, "prompt": "def f():", "text": "def f():\n    if x:\n\treturn"}
    write_lines(folder / "samples.jsonl", [sample])
    page = Page(write_report([folder])).source
    assert '<pre class="sample"><span class="prompt">def f():</span>\n    if x:\n\treturn</pre>' in page
    assert re.search(r"(^|, )pre \{ font-family: [^}]*monospace", page, flags=re.MULTILINE)


def test_a_caption_promises_a_mean_only_where_one_is_drawn(tmp_path: Path) -> None:
    short = Page(write_report([make_run(tmp_path / "short", steps=16)])).text
    assert "Bold" not in short
    assert "the mean over" not in short
    long = Page(write_report([make_run(tmp_path / "long", steps=200)])).text
    assert long.count("the mean over 4 records") == 2
    assert "its mean over 4 records" in long


def test_a_run_still_going_on_or_killed_says_so(folders: list[Path], tmp_path: Path) -> None:
    text = Page(write_report([folders[2]], tmp_path / "page.html")).text
    assert "This run has not finished" in text
    assert "Overshoot" not in text
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.toml").write_text("seed = 1\n")
    assert "Nothing has been measured yet" in Page(write_report([bare])).text


@pytest.mark.parametrize("values", [[float("nan")] * 6, [5.0, float("inf"), 4.0, float("nan"), 3.5, 3.4], [1e300] * 6])
def test_losses_that_are_not_finite_do_not_break_the_page(tmp_path: Path, values: list[float]) -> None:
    folder = make_run(tmp_path / "run", steps=6 * 8)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][:6]
    write_lines(folder / "metrics.jsonl", [{**line, "loss": loss} for line, loss in zip(lines, values, strict=True)])
    lost = sum(1 for loss in values if not abs(loss) < float("inf"))
    text = Page(write_report([folder])).text
    assert (f"{lost} of 6 recorded losses are not finite" in text) == (lost > 0)
    other = make_run(tmp_path / "other")
    text = Page(write_report([folder, other], tmp_path)).text
    assert (f"not finite, and not drawn: {lost} of run A" in text) == (lost > 0)


def test_runs_are_laid_side_by_side(folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    target = write_report(folders)
    assert target.resolve() == tmp_path / "report.html"
    page = Page(target)
    assert page.source.count("<svg") == 6, "held-out and training loss, against time, computation and tokens"
    for words in ("A muon", "B adamw", "C killed (not finished)", "3 runs side by side"):
        assert words in page.text
    assert "optim.name muon adamw muon" in page.text
    assert "optim.lr 0.02 0.001 0.02" in page.text
    marks = re.findall(r"<mark>([^<]*)</mark>", page.source)
    assert sorted({mark.split(" = ")[0] for mark in marks}) == ["lr", "name", "seed"]
    assert len(marks) == 9
    best = re.findall(r"<strong>([^<]*)</strong>", page.source)
    assert best == [f"{json.loads((folders[0] / 'summary.json').read_text())['heldout_loss']:.3f}"]


def test_where_a_page_goes(folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "render", lambda runs: f"{len(runs)} drawn elsewhere")
    assert write_report(folders[1:2]) == folders[1] / "report.html"
    assert write_report([*folders[1:2], folders[1]]) == folders[1] / "report.html", "the same run twice is one run"
    assert (folders[1] / "report.html").read_text() == "1 drawn elsewhere"
    assert write_report(folders[:1], tmp_path) == tmp_path / "report.html"
    assert write_report(folders[:1], tmp_path / "new" / "a.html").is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(ShoestringError, match="cannot be written"):
        write_report(folders[:1], tmp_path / "file" / "a.html")
    with pytest.raises(UsageError, match="not a run"):
        write_report([tmp_path])


def test_matplotlib_waits_for_the_first_figure_and_pyplot_is_never_loaded(folders: list[Path], tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from shoestring.report import write_report;"
        "assert not {'matplotlib', 'jinja2', 'torch'} & set(sys.modules);"
        "write_report([Path(sys.argv[1])], Path(sys.argv[2]));"
        "assert 'matplotlib' in sys.modules and not {'matplotlib.pyplot', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, folders[0], tmp_path / "page.html"], check=True)
