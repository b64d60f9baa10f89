"""A run whose workers come and go, from where it was started: its lighthouse, its workers here, and what they come to."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring.budget.ledger import read_ledger
from shoestring.cli.fleet import Fleet
from shoestring.cli.host import LOOPBACK, Host
from shoestring.cli.live import LiveView
from shoestring.data.dataset import Dataset
from shoestring.errors import ShoestringError
from shoestring.json_files import NotJson, parse_json, read_lines
from shoestring.train.config import RunConfig
from shoestring.train.run_folder import RunFolder
from shoestring.train.session import Outcome


@dataclass(frozen=True)
class Terms:
    """restart: workers that die are started again. listen: where the run's listener is. since: the monotonic clock when the
    command was given."""

    restart: bool = False
    listen: tuple[str, int] = LOOPBACK
    since: float = 0.0


class _Tail:
    """The lines of metrics that workers write, as they write them: of each step the first worker's."""

    def __init__(self, workers: Path, view: LiveView) -> None:
        self.workers, self.view = workers, view
        self.read: dict[Path, int] = {}
        self.step = -1

    def look(self) -> None:
        for path in sorted(self.workers.glob("*/metrics.jsonl")):
            with open(path, "rb") as file:
                file.seek(self.read.get(path, 0))
                for text in file:
                    if not text.endswith(b"\n"):
                        break
                    self.read[path] = self.read.get(path, 0) + len(text)
                    try:
                        line = parse_json(text)
                        newer = line["kind"] == "heldout" or line["step"] > self.step
                    except (NotJson, LookupError, TypeError):
                        continue  # damaged: who watches does without it, and the report names it
                    if newer:
                        self.step = max(self.step, line["step"])
                        self.view.show(line)


def host_run(config: RunConfig, dataset: Dataset, folder: RunFolder, view: LiveView, terms: Terms) -> Outcome:
    """Start the lighthouse and the workers of this machine, and see the run to its end; its result is put in its folder.

    Raises: ShoestringError where the run cannot go on from here.
    """
    with Host(config, dataset, folder, terms.listen) as host:
        for line in host.directions:
            view.say(line)
        names = [str(rank) for rank in range(config.workers)]
        fleet = Fleet(host, names, restart=terms.restart, since=terms.since or time.monotonic(), say=view.say)
        status = fleet.watch(_Tail(folder.path / "workers", view).look)
        judge = host.run_status.finished_by()
    if status:
        return Outcome("interrupted", status - 128, _newest_summary(folder), "")
    return _adopt(folder, judge)


def _newest_summary(folder: RunFolder) -> dict[str, Any]:
    found = [RunFolder(path.parent).read_summary() for path in (folder.path / "workers").glob("*/summary.json")]
    if not found:
        raise ShoestringError("the run was stopped before any worker had joined it")
    return max(found, key=lambda summary: summary["steps"])


def accounts(workers: Path, credited: Mapping[str, int]) -> dict[str, Any]:
    """What became of every token that the workers whose folders lie here trained on.

    trained: by their ledgers. seen: of these, in rounds that the run committed. discarded: the rest, lost with a worker that
    died, or that took over the run's state.
    """
    each: dict[str, dict[str, int]] = {}
    for path in sorted(workers.glob("*/ledger.jsonl")):
        lines = read_ledger(path)
        trained = sum(line.get("tokens", 0) + line.get("discarded", 0) for line in lines)
        name = (path.parent / "name").read_text().strip()
        seen = credited.get(name, 0)
        each[name] = {"trained": trained, "seen": seen, "discarded": trained - seen}
    total = {key: sum(found[key] for found in each.values()) for key in ("trained", "seen", "discarded")}
    return {**total, "workers": each}


def _adopt(folder: RunFolder, judge: str) -> Outcome:
    """Make the result of the worker that judged the run the run's own."""
    theirs = RunFolder(folder.path / "workers" / judge)
    summary = theirs.read_object("summary.json")
    if summary is None:
        raise ShoestringError(f"the run has ended, and {judge}, a worker elsewhere, has its result")
    summary["accounts"] = accounts(folder.path / "workers", summary["credited"])
    summary["tokens_discarded"] = summary["accounts"]["discarded"]
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    shutil.copytree(theirs.checkpoints, folder.checkpoints)
    for name in ("metrics.jsonl", "ledger.jsonl", "samples.jsonl"):
        if (theirs.path / name).exists():
            shutil.copyfile(theirs.path / name, folder.path / name)
    folder.write_json("summary.json", summary)
    samples = read_lines(theirs.path / "samples.jsonl")
    sample = samples[-1][1] if samples else {"prompt": "", "text": ""}
    return Outcome("finished", None, summary, sample["prompt"] + sample["text"])
