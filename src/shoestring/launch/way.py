"""What the ways to start a run have in common: what each is given, what it answers, and the plan that it begins with."""

import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import Machine
from shoestring.config import Tree
from shoestring.data.dataset import Dataset
from shoestring.launch.request import TrainingRequest, decisions, prepared, tried
from shoestring.launch.view import View
from shoestring.train.config import RunConfig
from shoestring.train.edits import with_planned_tokens
from shoestring.train.run_folder import RunFolder
from shoestring.train.session import Outcome

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ended:
    """How a run ended for this process.

    folder: the run's, or the part of it that this worker keeps.
    outcome: how it ended, and what it came to.
    leads: whether this process speaks for the run: its result is in `folder`, and no other process reports on it.
    """

    folder: RunFolder
    outcome: Outcome
    leads: bool = True


class Way(Protocol):
    """One way to have a run trained: `Alone`, `Crew` and `Elastic` are."""

    def begin(self, request: TrainingRequest, out: Path) -> Ended:
        """Train a new run.

        request: what is asked for.
        out: the run's folder, which must be new or empty.
        Raises: UsageError, ShoestringError.
        """
        ...

    def resume(self, path: Path, step: int | None, moved: Tree) -> Ended:
        """Go on with a run.

        path: the run's folder.
        step: of the checkpoint to go on from; None: the newest.
        moved: where its files lie now, as far as they were moved: {"data": {"corpus": PATH}}.
        Raises: UsageError, ShoestringError.
        """
        ...


@dataclass(frozen=True)
class LaunchContext:
    """What a way to start a run works with.

    view: what the run is shown to.
    held: keeps the locks of folders until whoever launched the run is done with them.
    """

    view: View
    held: ExitStack

    def decide(
        self, request: TrainingRequest, folder: RunFolder, ledger: Ledger, machine: Machine
    ) -> tuple[Dataset, RunConfig, float]:
        """The data, the plan laid under what was asked for, and the seconds that it expects; shown, and kept in the folder."""
        view = self.view
        dataset = prepared(request, ledger.clock("data"))
        with ledger.clock("measure"):
            made, config = tried(request, machine, dataset, ledger)
            config = replace(config, edits=with_planned_tokens(config.edits, made.tokens))
            view.decided(request, made, machine)
            folder.write_json("decisions.json", decisions(request, made))
            dataset.tokenizer.save(folder.tokenizer)
        log.info(f"run: {folder.path}")
        return dataset, config, made.seconds
