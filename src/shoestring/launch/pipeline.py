"""A run trained by a pipeline: this process coordinates, and the stages of the model are processes of this machine."""

from dataclasses import replace
from pathlib import Path

from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import cache_folder, probe
from shoestring.config import Tree
from shoestring.data.prepare import prepare
from shoestring.launch.processes import available_cores
from shoestring.launch.request import TrainingRequest
from shoestring.launch.resuming import resumed_config
from shoestring.launch.way import Ended, LaunchContext
from shoestring.train.pipeline import PipelineParticipation
from shoestring.train.run_folder import RunFolder
from shoestring.train.starting import begin, resolve, resume


class PipelineWay:
    """The `Way` of a pipeline of stages."""

    def __init__(self, place: LaunchContext) -> None:
        self.place, self.view = place, place.view

    def begin(self, request: TrainingRequest, out: Path) -> Ended:
        view, folder = self.view, self.place.held.enter_context(RunFolder.create(out))
        ledger = Ledger(folder.ledger)
        with ledger.clock("start"):
            machine = probe()
        dataset, config, expected = self.place.decide(request, folder, ledger, machine)
        threads = config.execution.threads or max(1, len(available_cores()) // config.pipeline.stages)
        config = replace(config, execution=replace(config.execution, threads=threads))
        config = resolve(config, dataset, machine, ledger, expected)
        with view.watch(config, machine) as watch, PipelineParticipation(folder.path, threads) as participation:
            outcome = begin(config, folder, ledger, dataset, machine, watch.show, participation)
        return Ended(folder, outcome)

    def resume(self, path: Path, step: int | None, moved: Tree) -> Ended:
        folder = RunFolder.open(path)
        self.place.held.enter_context(folder.held())
        config = resumed_config(folder, moved)
        ledger, threads = Ledger(folder.ledger), config.execution.threads
        with self.view.watch(config, probe()) as watch, PipelineParticipation(path, threads) as participation:
            with ledger.clock("data"):
                dataset = prepare(config.data, cache_folder())
            outcome = resume(folder, config, ledger, dataset, watch.show, step, participation)
        return Ended(folder, outcome)
