"""The page of methods: true to cards and evidence, the same each time, safe in Markdown."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from synthetic_comparisons import ADAMW, MUON, Way, make_comparison

from shoestring.errors import ShoestringError, UsageError
from shoestring.method import Card, methods
from shoestring.report.methods_page import main, methods_page, paper

LINEAR = {"name": "linear", "floor": 0.0}


def card(engine: str, name: str, *, kind: str = "", paper: str = "", claim: str = "good", cost: str = "little") -> Card:
    return Card(engine, name, paper, claim, cost, kind, dict)


CARDS = [
    card("optim", "adamw", paper="Decoupled Weight Decay Regularization, arXiv:1711.05101"),
    card("optim", "muon", claim="half | the *FLOPs*"),
    card("optim", "soap"),
    card("schedule", "linear"),
    card("schedule", "wsd"),
    card("schedule", "ramp", kind="batch"),
    card("model", "attention", kind="token mixer"),
]


def told(page: str, name: str, key: str = "measured") -> list[str]:
    """What the page says of a method under a key: one line, or the lines of a list."""
    entries = page.split(f"\n### `{name}`\n")[1:]
    assert len(entries) == 1
    (found,) = re.findall(rf"^- {key}:(.*\n(?:    - .*\n)*)", re.split(r"^##", entries[0], flags=re.M)[0], flags=re.M)
    return [
        line.strip().removeprefix("- ").replace("\N{NO-BREAK SPACE}", " ")
        for line in found.splitlines()
        if line.strip()
    ]


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    folder = tmp_path / "evidence"
    lrs = (0.01, 0.02, 0.04)
    ways = [
        Way("adamw", optim=ADAMW.optim, tune=lrs),
        Way("muon", -0.3, optim=MUON.optim, tune=lrs, edge=True),
        Way("muon_svd", 0.4, optim={**MUON.optim, "polar": "svd"}, tune=lrs),
        Way("soap", optim={"name": "soap", "lr": 0.1}, schedule=LINEAR, tune=lrs),
    ]
    make_comparison(folder / "optimizers", ways, noise=0.04)
    rates = {**ADAMW.optim, "lr": 0.005}
    linear = Way("linear", 0.5, optim=rates, schedule=LINEAR, tune=lrs)
    base = Way("adamw", optim=ADAMW.optim, tune=lrs)
    make_comparison(folder / "schedules", [base, linear], unit="tokens")
    make_comparison(folder / "rates", [ADAMW, Way("low", 0.5, optim={**ADAMW.optim, "lr": 3e-5})])
    (folder / "throughput.json").write_text("{}")
    (folder / "notes").mkdir()
    return folder


def test_every_method_has_a_row_under_its_engine_and_kind(tmp_path: Path) -> None:
    page = methods_page(CARDS, tmp_path)
    assert re.findall(r"^## (.*)$", page, flags=re.MULTILINE) == [
        "optim", "schedule", "schedule: batch", "model: token mixer",
    ]  # fmt: skip
    for one in CARDS:
        assert "- not measured yet" in page.split(f"### `{one.name}`")[1].split("###")[0]
    assert told(page, "adamw", "source") == [
        "[Decoupled Weight Decay Regularization](https://arxiv.org/abs/1711.05101)"
    ]
    assert "source" not in page.split("### `soap`")[1].split("###")[0]
    assert told(page, "muon", "claim") == [r"half | the \*FLOPs\*"]
    assert told(page, "muon", "cost") == ["little"]
    assert "| [schedule: batch](#schedule-batch) | 1 | 0 |" in page


def test_what_was_measured_stands_beside_the_method_that_differed(evidence: Path) -> None:
    page = methods_page(CARDS, evidence)
    found = json.loads((evidence / "optimizers" / "verdict.json").read_text())["comparisons"]
    by_name = {one["candidate"]: one for one in found}
    muon = told(page, "muon")
    assert len(muon) == 2
    effect = f"{by_name['muon']['difference']:+.3f} nats".replace("-", "−")
    assert muon[0].startswith(f"[**better** than adamw](../evidence/optimizers/): {effect} (95 %: −")
    assert muon[0].endswith("), 5 pairs at 3m 00s"), "neither the method's own options nor tuned rates are 'with'"
    assert muon[1].startswith("as `muon_svd`: [**worse** than adamw]")
    (soap,) = told(page, "soap")
    assert soap.startswith("[**no difference shown** from adamw]")
    assert soap.endswith("with `schedule = linear`"), "what else was changed is said"
    assert told(page, "adamw") == ["the base of [optimizers](../evidence/optimizers/)"]


def test_the_same_method_in_another_arm_counts_where_it_is_what_differs(evidence: Path) -> None:
    page = methods_page(CARDS, evidence)
    lines = told(page, "linear")
    assert len(lines) == 2
    assert lines[0].endswith("with `optim = soap`")
    assert lines[1].startswith("as `linear`: ") is False
    assert "[**worse** than wsd](../evidence/schedules/)" in lines[1]
    assert lines[1].endswith("5 pairs at 4.00 M tokens"), "a learning rate that was tuned is not among what was set"
    assert "[schedules]" in told(page, "wsd")[0]
    assert "- not measured yet" in page.split("### `attention`")[1], "both arms used it"


def test_comparisons_of_settings_alone_are_kept_apart(evidence: Path) -> None:
    page = methods_page(CARDS, evidence)
    settings = page[page.index("## Settings") :]
    assert "- `low`: [**worse** than adamw](../evidence/rates/)" in settings
    assert "with `optim.lr = 3e-05`" in settings
    assert settings.count("\n- ") == 1
    (evidence / "rates" / "verdict.json").unlink()
    assert "## Settings" not in methods_page(CARDS, evidence)


def test_notes_stand_beside_the_verdict_they_are_on_and_findings_beside_their_method(evidence: Path) -> None:
    (evidence / "notes.toml").write_text(
        '[arms.optimizers]\nsoap = "its *bases* were never refreshed"\n'
        '[[findings]]\nengine = "schedule"\nkind = "batch"\nname = "ramp"\nsaid = "one rate for all"\n'
        'evidence = "throughput.json"\n'
    )
    page = methods_page(CARDS, evidence)
    assert told(page, "soap")[0].endswith(r"with `schedule = linear`; note: its \*bases\* were never refreshed")
    assert told(page, "ramp") == ["one rate for all ([figures](../evidence/throughput.json))"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[arms.optimizers]\nadamw = "the base"', "note on adamw in optimizers"),
        ('[arms.elsewhere]\nsoap = "x"', "note on soap in elsewhere"),
        ('[[findings]]\nengine = "optim"\nname = "sgd"\nsaid = "x"\nevidence = "throughput.json"', "no such method"),
        ('[[findings]]\nengine = "optim"\nname = "soap"\nsaid = "x"\nevidence = "none.json"', "no such file"),
        ('[[findings]]\nengine = "optim"\nname = "soap"\nsays = "x"', r"findings\.0\.said"),
    ],
)
def test_a_note_on_what_there_is_not_is_refused(evidence: Path, text: str, said: str) -> None:
    (evidence / "notes.toml").write_text(text)
    with pytest.raises(UsageError, match=said):
        methods_page(CARDS, evidence)


def test_a_verdict_without_figures_is_kept(tmp_path: Path) -> None:
    make_comparison(tmp_path / "one", [ADAMW, Way("muon", fails=4, optim=MUON.optim)], seeds=4)
    assert told(methods_page(CARDS, tmp_path), "muon") == [
        "[**not comparable** with adamw](../evidence/one/), 0 pairs at 3m 00s"
    ]


def test_sections_named_after_neither_engine_nor_kind_are_known(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "one", [ADAMW, Way("ramp", optim=ADAMW.optim)])
    for name in ("adamw", "ramp"):
        path = folder / "arms" / f"{name}.toml"
        path.write_text(path.read_text() + f'\n[batch_size]\nname = "{"ramp" if name == "ramp" else "constant"}"\n')
    assert "from adamw" in told(methods_page(CARDS, tmp_path), "ramp")[0]
    constant = [*CARDS, card("schedule", "constant", kind="batch")]
    page = methods_page(sorted(constant, key=lambda one: (one.engine, one.kind, one.name)), tmp_path)
    assert "from constant" in told(page, "ramp")[0]
    assert told(page, "constant")[0].startswith("the base of")


def test_the_way_to_synchronise_is_an_outer_loop(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "one", [ADAMW, Way("muloco_2bit", optim=ADAMW.optim)])
    for name in ("adamw", "muloco_2bit"):
        path = folder / "arms" / f"{name}.toml"
        path.write_text(path.read_text() + f'\n[sync]\nname = "{"none" if name == "adamw" else "muloco"}"\n')
    loops = [card("sync", name, kind="outer loop") for name in ("muloco", "none")]
    page = methods_page(sorted([*CARDS, *loops], key=lambda one: (one.engine, one.kind, one.name)), tmp_path)
    assert "from none" in told(page, "muloco")[0]
    assert told(page, "none")[0].startswith("the base of")


def test_the_text_depends_on_cards_and_evidence_alone(evidence: Path, tmp_path: Path) -> None:
    page = methods_page(CARDS, evidence)
    assert methods_page(CARDS, evidence) == page
    moved = tmp_path / "elsewhere" / "evidence"
    moved.parent.mkdir()
    evidence.rename(moved)
    assert methods_page(CARDS, moved) == page
    assert "../evidence/" not in methods_page(CARDS, moved, "../../proof")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("arXiv:2502.16982", "[arXiv:2502.16982](https://arxiv.org/abs/2502.16982)"),
        ("A, B; and C, arXiv:2502.16982v2", "[A, B; and C](https://arxiv.org/abs/2502.16982)"),
        (
            "One, arXiv:2305.13245; Two, arXiv:2010.04245",
            "[One](https://arxiv.org/abs/2305.13245); [Two](https://arxiv.org/abs/2010.04245)",
        ),
        ("Old, arXiv:hep-th/9901001; a book", "[Old](https://arxiv.org/abs/hep-th/9901001); a book"),
        ("A blog post", "A blog post"),
        ("[x] | y_, arXiv:2502.16982", r"[\[x\] | y\_](https://arxiv.org/abs/2502.16982)"),
    ],
)
def test_papers_are_linked(text: str, expected: str) -> None:
    assert paper(text) == expected


def test_every_real_card_has_its_entry(tmp_path: Path) -> None:
    page = methods_page(methods(), tmp_path)
    assert len(re.findall("^### `", page, flags=re.MULTILINE)) == len(methods())
    cells = [len(cell.split()) for line in page.splitlines() if line.startswith("|") for cell in line.split("|")]
    assert max(cells) <= 12


def test_the_command_writes_the_page_with_links_that_hold(evidence: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = evidence.parent / "docs" / "pages" / "methods.md"
    assert main(["--evidence", str(evidence), "--out", str(target)]) == 0
    links = re.findall(r"\]\((\.\.[^)]*)\)", target.read_text())
    assert links
    assert all((target.parent / link / "verdict.json").is_file() for link in links)
    assert capsys.readouterr().out.strip() == str(target)


def spoil(folder: Path, name: str, text: str | None) -> None:
    path = folder / "rates" / name
    path.unlink() if text is None else path.write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("verdict.json", "{", "verdict.json, line 1"),
        ("arms/low.toml", "a =", "low.toml is damaged"),
        ("arms/low.toml", None, "low.toml is missing"),
    ],
)
def test_damaged_evidence_is_an_error_of_one_line(
    evidence: Path, capsys: pytest.CaptureFixture[str], name: str, text: str | None, where: str
) -> None:
    spoil(evidence, name, text)
    with pytest.raises(ShoestringError, match=where):
        methods_page(CARDS, evidence)
    out = evidence.parent / "methods.md"
    assert main(["--evidence", str(evidence), "--out", str(out)]) == 1
    message: Any = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert not out.exists()


def test_no_evidence_folder_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="no such evidence"):
        methods_page(CARDS, tmp_path / "nowhere")
    assert main(["--evidence", str(tmp_path / "nowhere"), "--out", str(tmp_path / "methods.md")]) == 2
    (tmp_path / "file").write_text("")
    assert main(["--evidence", str(tmp_path), "--out", str(tmp_path / "file" / "methods.md")]) == 1
    assert "cannot be written" in capsys.readouterr().err
