"""What a bench that was stopped kept in its JSON file, so that the same command goes on."""

import json
from pathlib import Path
from typing import Any

from shoestring.errors import UsageError


def begun(path: Path | None, settings: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    """The content of the file; empty where there is none.

    settings: of the bench, as its file keeps them. machine: as `environment` says it.
    Raises: UsageError where it was made with other settings, or on another machine.
    """
    if path is None or not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    before, now = found["environment"]["machine"], machine["machine"]
    alike = all(before[key] == now[key] for key in ("name", "threads"))
    if found["settings"] != json.loads(json.dumps(settings, default=str)) or not alike:
        raise UsageError(f"{path} is of other settings or of another machine: name another file")
    return found
