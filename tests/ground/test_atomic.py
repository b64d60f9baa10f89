from pathlib import Path

import pytest

from shoestring import atomic


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic.write_text(path, "old")
    with pytest.raises(TypeError):
        atomic.write_bytes(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic.directory(tmp_path / "made") as half:
        (half / "a").write_text("1")
        assert not (tmp_path / "made").exists()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic.directory(tmp_path / "made") as half:
        (half / "a").write_text("1")
    assert (tmp_path / "made" / "a").read_text() == "1"
