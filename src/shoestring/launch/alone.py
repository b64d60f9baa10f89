"""A run trained by this process alone, with all its workers in it."""

from pathlib import Path

from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import cache_folder, probe
from shoestring.config import Tree
from shoestring.data.prepare import prepare
from shoestring.launch.request import TrainingRequest
from shoestring.launch.resuming import resumed_config
from shoestring.launch.way import Ended, LaunchContext
from shoestring.train.run_folder import RunFolder
from shoestring.train.starting import resume, start


class Alone:
    """The `Way` of one process."""

    def __init__(self, place: LaunchContext) -> None:
        self.place, self.view = place, place.view

    def begin(self, request: TrainingRequest, out: Path) -> Ended:
        folder = self.place.held.enter_context(RunFolder.create(out))
        ledger = Ledger(folder.ledger)
        with ledger.clock("start"):
            machine = probe()
        dataset, config, expected = self.place.decide(request, folder, ledger, machine)
        with self.view.watch(config, machine) as watch:
            return Ended(folder, start(config, folder, ledger, dataset, machine, watch.show, expected))

    def resume(self, path: Path, step: int | None, moved: Tree) -> Ended:
        folder = RunFolder.open(path)
        self.place.held.enter_context(folder.held())
        config = resumed_config(folder, moved)
        ledger = Ledger(folder.ledger)
        with self.view.watch(config, probe()) as watch:
            with ledger.clock("data"):
                dataset = prepare(config.data, cache_folder())
            return Ended(folder, resume(folder, config, ledger, dataset, watch.show, step))
