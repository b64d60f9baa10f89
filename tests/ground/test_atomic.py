import fcntl
import signal
import subprocess
import sys
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


HALF = """
import os, signal, sys
import signal
import subprocess
import sys
from pathlib import Path
from shoestring import atomic
path = Path(sys.argv[1])
if sys.argv[2] == "directory":
    with atomic.directory(path) as half:
        (half / "a").write_text("1")
        os.kill(os.getpid(), signal.SIGKILL)
else:
    os.replace = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
    atomic.write_text(path, "1")
"""


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_what_a_killed_process_left_is_removed_by_the_next_and_no_living_one_s(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "made"
    assert subprocess.run([sys.executable, "-c", HALF, path, kind]).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    other = tmp_path / ".made.too.7.tmp"  # half of another name
    other.write_text("")
    with atomic.directory(tmp_path / "other"):  # of another name: it is left
        pass
    assert left.exists()
    with atomic.directory(path) as half:
        assert not left.exists()
        atomic.sweep(tmp_path, "made")  # as another writer would
        assert half.exists()
        assert other.exists()
        atomic.sweep(tmp_path)  # of any name
        assert not other.exists()


def test_writers_of_one_file_at_once_do_not_sweep_each_other_up(tmp_path: Path) -> None:
    write = "import sys; from pathlib import Path; from shoestring import atomic\n"
    write += "for n in range(150): atomic.write_text(Path(sys.argv[1]), str(n))"
    writers = [subprocess.Popen([sys.executable, "-c", write, tmp_path / "file"]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "149"


def test_a_file_that_is_written_by_name_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with atomic.file(path) as half:
        half.write_bytes(b"first")
        assert not path.exists()
    assert path.read_bytes() == b"first"
    with pytest.raises(ValueError), atomic.file(path) as half:
        half.write_bytes(b"sec")
        raise ValueError
    assert path.read_bytes() == b"first"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_a_sweeper_that_comes_late_leaves_the_next_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its opening a file and locking it, the file's writer ends and begins another."""
    half, lock = tmp_path / ".file.1.tmp", fcntl.flock
    half.write_text("first")

    def late(handle: int, how: int) -> None:
        half.rename(tmp_path / "file")
        half.write_text("second")
        lock(handle, how)

    monkeypatch.setattr(atomic.fcntl, "flock", late)
    atomic.sweep(tmp_path, "file")
    assert half.read_text() == "second"
