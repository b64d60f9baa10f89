"""What plans have learned from: runs that are kept between plans, by what makes their losses comparable."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoestring import atomic
from shoestring.json_files import read_lines
from shoestring.plan.runs_table import RunsTable, read_folders, text_of


def learn(folders: Sequence[Path], store: Path) -> int:
    """Keep the finished runs of these folders for later plans; a run that is known is taken anew. Returns how many are kept now.

    store: a file of JSON lines, one a run.
    Raises: UsageError for a folder that gives no run.
    """
    table = read_folders(folders)
    kept = {str(line["run"]): line for line in _lines(store)}
    for at, name in enumerate(table.names):
        row = {key: float(column[at]) for key, column in table.columns.items() if column[at] == column[at]}
        run = str(Path(name).resolve())
        kept[run] = {"run": run, "text": text_of(Path(name)), "row": row}
    store.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(store, "".join(json.dumps(line) + "\n" for line in kept.values()))
    return len(kept)


def known(store: Path, text: str) -> RunsTable | None:
    """The kept runs on one text, None where there is none.

    text: as `text_of` gives it: losses of another corpus or tokenizer are not comparable.
    """
    lines = [line for line in _lines(store) if line["text"] == text]
    if not lines:
        return None
    return RunsTable.of([dict(line["row"]) for line in lines], [str(line["run"]) for line in lines])


def _lines(store: Path) -> list[dict[str, Any]]:
    return [line for _, line in read_lines(store)]
