"""A folder as bytes, to be carried between machines: files by their paths, and nothing that could lead outside."""

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

from shoestring import atomic
from shoestring.errors import ShoestringError


def packed(folder: Path, leaves: Collection[str] = ()) -> dict[str, bytes]:
    """The files in a folder by their paths below it, with '/' between. leaves: names of folders in it that are left out.

    Raises: ShoestringError for what is no file.
    """
    found = dict[str, bytes]()
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if below.parts[0] in leaves or (path.is_dir() and not path.is_symlink()):
            continue
        if path.is_symlink() or not path.is_file():
            raise ShoestringError(f"{path} is no file, and only files can be carried to another machine")
        found[below.as_posix()] = path.read_bytes()
    return found


def unpack(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files into a folder, which appears whole or not at all; what was there before is replaced.

    Raises: ShoestringError for a path that would lead elsewhere.
    """
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in name or "\0" in name:
            raise ShoestringError(
                f"a file called {name!r} came back, which is no path below {folder}: nothing is written"
            )
    if folder.exists():
        shutil.rmtree(folder)
    with atomic.directory(folder) as arriving:
        for name, content in files.items():
            target = arriving / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
