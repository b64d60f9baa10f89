"""A run whose workers come and go, from where it was started: its lighthouse, its workers here, and what they come to."""

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shoestring.budget.ledger import Ledger, read_ledger
from shoestring.budget.machine import cache_folder, probe
from shoestring.config import Tree
from shoestring.data.dataset import Dataset
from shoestring.data.prepare import prepare
from shoestring.errors import ShoestringError, UsageError
from shoestring.json_files import NotJson, parse_json, read_lines
from shoestring.launch.fleet import Fleet
from shoestring.launch.host import LOOPBACK, Host, require_torchft
from shoestring.launch.processes import available_cores, share_of_cores
from shoestring.launch.request import TrainingRequest
from shoestring.launch.resuming import resumed_config
from shoestring.launch.view import RunDisplay
from shoestring.launch.way import Ended, LaunchContext
from shoestring.train.config import RunConfig
from shoestring.train.run_folder import RunFolder, environment
from shoestring.train.session import Outcome, require_same_text
from shoestring.train.starting import resolve

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hosting:
    """How the process that starts an elastic run hosts it.

    restart: whether workers of this machine that die are started again.
    listen: (host, port) of the run's listener; port 0: any that is free.
    since: the monotonic clock when the run was asked for; 0: now.
    """

    restart: bool = False
    listen: tuple[str, int] = LOOPBACK
    since: float = 0.0


class _Tail:
    """The lines of metrics that workers write, as they write them: of each step the first worker's."""

    def __init__(self, workers: Path, watch: RunDisplay) -> None:
        self.workers, self.watch = workers, watch
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
                        self.watch.show(line)


def host_run(config: RunConfig, dataset: Dataset, folder: RunFolder, watch: RunDisplay, hosting: Hosting) -> Outcome:
    """Start the lighthouse and the workers of this machine, and see the run to its end; its result is put in its folder.

    Raises: ShoestringError where the run cannot go on from here.
    """
    with Host(config, dataset, folder, hosting.listen) as host:
        for line in host.directions:
            log.info(line)
        names = [str(rank) for rank in range(config.workers)]
        fleet = Fleet(host, names, restart=hosting.restart, since=hosting.since or time.monotonic())
        status = fleet.watch(_Tail(folder.path / "workers", watch).look)
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


class Elastic:
    """The `Way` of workers that come and go: this process decides, starts those of this machine and keeps their lighthouse."""

    def __init__(self, place: LaunchContext, hosting: Hosting) -> None:
        self.place, self.view, self.hosting = place, place.view, hosting

    def begin(self, request: TrainingRequest, out: Path) -> Ended:
        require_torchft()
        machine, folder = probe(), self.place.held.enter_context(RunFolder.create(out))
        ledger = Ledger(folder.ledger, since=self.hosting.since or None)
        dataset, config, expected = self.place.decide(request, folder, ledger, machine)
        threads = config.execution.threads or len(share_of_cores(0, config.workers, available_cores()))
        config = replace(config, execution=replace(config.execution, threads=threads))
        config = resolve(config, dataset, machine, ledger, expected)
        folder.write_json("environment.json", environment(machine))
        folder.write_config(config, dataset)
        ledger.close()
        with self.view.watch(config, machine) as watch:
            return Ended(folder, host_run(config, dataset, folder, watch, self.hosting))

    def resume(self, path: Path, step: int | None, moved: Tree) -> Ended:
        """As `Way.resume`.

        step: must be None.
        """
        require_torchft()
        if step is not None:
            raise UsageError(
                "workers that come and go go on from the latest step that any of them has kept: name no step"
            )
        folder = RunFolder.open(path)
        self.place.held.enter_context(folder.held())
        if folder.read_summary().get("stopped") == "finished":
            raise UsageError(f"{path} has finished: its budget is spent")
        config = resumed_config(folder, moved)
        with self.view.watch(config, probe()) as watch:
            dataset = prepare(config.data, cache_folder())
            origin = folder.read_origin()
            if origin is not None and origin.data:
                require_same_text(origin.data, dataset, config)
            folder.write_config(config, dataset)
            return Ended(folder, host_run(config, dataset, folder, watch, self.hosting))
