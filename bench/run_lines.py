"""Runs as lines of a JSON file: what is there is not run again, and a line that was cut off is."""

import json
from pathlib import Path
from typing import Any


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
