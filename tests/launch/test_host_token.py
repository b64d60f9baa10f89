"""The token of a run: private, kept, and made anew where a kill left its file empty."""

import stat
from pathlib import Path

import pytest

from shoestring.errors import ShoestringError
from shoestring.launch.host import token_of


def test_it_is_private_and_stays(tmp_path: Path) -> None:
    token = token_of(tmp_path)
    assert len(token) >= 22
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert token_of(tmp_path) == token


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\n"])
def test_an_empty_one_is_made_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    token = token_of(tmp_path)
    assert token == token_of(tmp_path) != ""
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"short", b"two words that are long enough", b"\xff" * 40])
def test_what_is_no_token_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(ShoestringError, match="holds no token of a run: delete it"):
        token_of(tmp_path)
