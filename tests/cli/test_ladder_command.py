"""What `shoestring ladder` and the newer flags of `plan` refuse, before any work."""

from pathlib import Path

import pytest

from shoestring.cli.main import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("ladder --budget 1Mtok", "a ladder has an allowance of time, like 30m"),
        ("ladder --resume nowhere", "is no ladder: it has no ladder.json"),
        ("ladder --resume nowhere --out there", "--resume goes on with a ladder as it is"),
        ("ladder --model.width 64", "model.width differs from run to run of a ladder"),
        ("plan --served 5m", "is not a number of tokens: write it like 20Mtok"),
        ("plan --fits 5m", "is not a size of memory: write it like 4GiB"),
        ("plan --link 5m", "is no link: write it like 12MB,2ms"),
        ("plan --link 12MB,soon", "is no link"),
        ("plan --layouts 1", "is not between 2 and 4096"),
    ],
)
def test_a_bad_word_is_one_line(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
