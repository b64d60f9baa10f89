"""The README's worked example is real: it is a method once it is run."""

import re
from pathlib import Path

import pytest

from shoestring.cli.main import main
from shoestring.method import _cards
from tests.train.command import TINY

README = Path(__file__).parent.parent / "README.md"


def test_the_example_of_a_method_trains(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(code.splitlines()) < 40
    exec(compile(code, "signum.py", "exec"), {"__name__": "signum"})
    try:
        words = ["train", "--budget=20ktok", f"--data.corpus={corpus}", "--out", str(tmp_path / "run"), *TINY]
        assert main([*words, "--optim=signum", "--optim.lr=0.001", "--schedule=linear"]) == 0
        assert 'name = "signum"' in (tmp_path / "run" / "config.toml").read_text()
        assert main(["methods", "optim"]) == 0
        assert "signum" in capsys.readouterr().out
    finally:
        del _cards["optim", "", "signum"]


def test_folders_named_exist() -> None:
    for folder in re.findall(r"^\| `([\w/]+/)` \|", README.read_text(), re.MULTILINE):
        assert (README.parent / folder).is_dir(), folder
