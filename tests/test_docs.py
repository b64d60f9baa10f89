"""The pages are true: their code runs, their links lead somewhere, their tables stay short, their commands exist."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from shoestring import method as registry
from shoestring.cli.main import COMMANDS, main
from tests.train.command import TINY

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]

SHORT = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "index.md",
    "library.md",
    "models.md",
    "add-a-method.md",
    "results.md",
    "architecture.md",
)
"""The pages whose tables have short cells."""


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def test_the_library_page_runs_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    scope: dict[str, object] = {"__name__": "library"}
    found = blocks(DOCS / "library.md")
    assert len(found) >= 7
    for number, code in enumerate(found):
        exec(compile(code, f"docs/library.md, block {number}", "exec"), scope)
    shown = capsys.readouterr().out
    (printed,) = re.findall(r"^```text\n(.*?)^```$", (DOCS / "library.md").read_text(), re.DOTALL | re.MULTILINE)
    assert printed in shown
    assert "[0.0, 1.0, 1.0, 0.29, 0.0]" in shown
    assert "bound by tokens" in shown


def examples() -> dict[str, str]:
    """The code of docs/add-a-method.md by the name of the method that it adds."""
    named = {re.findall(r'name="(\w+)"', code)[0]: code for code in blocks(DOCS / "add-a-method.md")}
    assert len(named) == len(blocks(DOCS / "add-a-method.md"))
    return named


RUNS = {
    (
        "signum",
        "square_root",
        "quarter",
        "squares",
    ): "--optim=signum --optim.lr=0.001 --schedule=square_root --edits=quarter --data.corpus=squares:800",
    ("running_mean", "signs"): "--model.token_mixer=running_mean --train.sample_tokens=0 --workers=2 --transport=local "
    "--sync=diloco --sync.codec=signs --sync.every=5 --optim=adamw --schedule=linear",
}
"""Methods of the examples -> a run that uses them all."""


@pytest.mark.parametrize(("names", "flags"), RUNS.items(), ids=" ".join)
def test_the_examples_train(
    names: tuple[str, ...], flags: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for engine in registry.ENGINES:  # found before, so that only the examples are forgotten afterwards
        registry.methods(engine)
    monkeypatch.setattr(registry, "_cards", dict(registry._cards))
    for name in names:
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)  # a dataclass looks for its module
        exec(compile(examples()[name], f"docs/add-a-method.md, {name}", "exec"), vars(module))
    words = ["train", "--budget=8ktok", f"--data.corpus={corpus}", "--out", str(tmp_path / "run"), *TINY]
    given = {flag.partition("=")[0] for flag in flags.split()}
    words = [word for word in words if word.partition("=")[0] not in given] + flags.split()
    assert main(words) == 0, capsys.readouterr().err
    config = (tmp_path / "run" / "config.toml").read_text()
    assert all(f'"{name}' in config for name in names)
    assert main(["methods"]) == 0
    assert all(name in capsys.readouterr().out for name in names[:1])


def test_every_example_is_in_a_run() -> None:
    assert sorted(examples()) == sorted(name for names in RUNS for name in names)


def test_the_files_that_add_a_method_names_exist() -> None:
    text = (DOCS / "add-a-method.md").read_text()
    named = re.findall(r"`((?:src/shoestring/)?(?:\w+/)+\w+\.py)`", text)
    assert len(named) > 10
    for name in set(named) - {"src/shoestring/optim/signum.py"}:
        assert (ROOT / name).is_file() or (ROOT / "src" / "shoestring" / name).is_file(), name


def cells(page: Path) -> Iterator[str]:
    for line in page.read_text().splitlines():
        if line.startswith("|"):
            yield from (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])


@pytest.mark.parametrize("page", [page for page in PAGES if page.name in SHORT], ids=lambda page: page.name)
def test_cells_of_tables_have_at_most_twelve_words(page: Path) -> None:
    for cell in cells(page):
        said = re.sub(r"\]\([^)]*\)", "]", cell)
        assert len(said.split()) <= 12, cell


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    for line in re.findall(r"^    (?:\S+/)?shoestring (.*)$", page.read_text(), re.MULTILINE):
        command = shlex.split(line, comments=True)[0]
        assert command in COMMANDS or command.startswith("-"), line


def test_the_readme_is_short_and_promises_what_there_is() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert all(len(line) <= 140 for line in text.splitlines())
    assert re.findall(r"!\[.*?\]\(.*?\)", text), "one picture"
    assert "make demo" in text
    assert "make test" in text
    assert set(re.findall(r"^    (?:\S+/)?shoestring (\w+)", text, re.MULTILINE)) >= {
        "plan", "train", "evaluate", "generate", "export", "report", "compare", "shrink", "quantise", "tune", "serve",
        "data", "methods", "doctor",
    }  # fmt: skip


def test_folders_named_exist() -> None:
    folders = re.findall(r"^\| `([\w/]+/)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(folders) > 10
    for folder in folders:
        assert (ROOT / folder).is_dir(), folder
