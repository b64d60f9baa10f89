"""Runs as lines of a JSON file: what is there is not run again, and a line that was cut off is. The flags of such benches."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shoestring import atomic

FLAGS = ("out", "json", "smallest", "show")


def add_flags(parser: argparse.ArgumentParser, out: str) -> None:
    """The flags that such a bench has. out: the file of lines, where none is named."""
    parser.add_argument("--out", type=Path, default=Path(out), help="a line for each run, default %(default)s")
    parser.add_argument("--show", action="store_true", help="run nothing: print what the file holds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, machine and every line there")
    parser.add_argument("--smallest", action="store_true", help="only to see that it works")


def settings(options: argparse.Namespace, *choices: str) -> dict[str, Any]:
    """The settings that make runs comparable. choices: flags that say which runs are made, and not how."""
    return {key: value for key, value in vars(options).items() if key not in (*FLAGS, *choices)}


class RunLines:
    """The lines of `path`, each with the `settings` that all runs of the file share.

    Raises: SystemExit where a line is not JSON, unless it is the last, cut off; and where runs are of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.lines = path, list[dict[str, Any]]()
        text = path.read_text() if path.exists() else ""
        for number, line in enumerate(text.splitlines(), 1):
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                if text.endswith("\n"):
                    raise SystemExit(f"{path}: line {number} is not JSON") from None
                print(f"{path}: the last line is cut off, and its run is made again")
        if any(line["settings"] != settings for line in self.lines):
            raise SystemExit(f"{path} has runs of other settings: name another file with --out")
        self.torn = text[text.rfind("\n") + 1 :]

    def add(self, line: dict[str, Any]) -> None:
        if self.torn:
            whole = self.path.read_bytes()
            self.path.write_bytes(whole[: whole.rfind(b"\n") + 1])
            self.torn = ""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)

    def keep(
        self, path: Path | None, settings: dict[str, Any], machine: Callable[[], dict[str, Any]], **more: Any
    ) -> None:
        """Write settings, machine, `more` and every line; where no path is given, nothing."""
        if path is not None:
            content = {"settings": settings, "machine": machine(), **more, "runs": self.lines}
            atomic.write_text(path, json.dumps(content) + "\n")
