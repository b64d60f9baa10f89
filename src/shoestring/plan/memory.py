"""What plans have learned from: runs that are kept between plans, by what makes their losses comparable."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoestring import atomic
from shoestring.budget.machine import cache_folder
from shoestring.json_files import read_lines
from shoestring.plan.runs_table import RunsTable, optimizer_of, read_folders, text_of

LADDER = "ladder.json"
"""The file of a folder whose runs are a ladder: made by plan, for laws."""


def learned_runs() -> Path:
    """The store of this user: a file in the cache."""
    return cache_folder() / "learned-runs.jsonl"


def learn(folders: Sequence[Path], store: Path) -> int:
    """Keep the finished runs of these folders for later plans; a run that is known is taken anew. Returns how many are kept now.

    store: a file of JSON lines, one a run.
    Raises: UsageError for a folder that gives no run.
    """
    table = read_folders(folders)
    lines = {str(line["run"]): line for line in kept(store)}
    for at, name in enumerate(table.names):
        row = {key: float(column[at]) for key, column in table.columns.items() if column[at] == column[at]}
        run = str(Path(name).resolve())
        line: dict[str, Any] = {
            "run": run,
            "text": text_of(Path(name)),
            "row": row,
            "optimizer": optimizer_of(Path(name)),
        }
        if (Path(run).parent / LADDER).is_file():
            line["ladder"] = True
        lines[run] = line
    store.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(store, "".join(json.dumps(line) + "\n" for line in lines.values()))
    return len(lines)


def known(store: Path, text: str) -> RunsTable | None:
    """The kept runs on one text, None where there is none.

    text: as `text_of` gives it: losses of another corpus or tokenizer are not comparable.
    """
    lines = [line for line in kept(store) if line["text"] == text]
    if not lines:
        return None
    return RunsTable.of([dict(line["row"]) for line in lines], [str(line["run"]) for line in lines])


def kept(store: Path) -> list[dict[str, Any]]:
    """The lines of a store: 'run', its folder; 'text'; 'row', its columns; 'optimizer'; 'ladder' where it is of one."""
    return [line for _, line in read_lines(store)]
