"""The pages are true: their code runs, their links lead somewhere, their tables stay short, their commands exist."""

import re
import shlex
from pathlib import Path

import pytest

from shoestring.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]


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
