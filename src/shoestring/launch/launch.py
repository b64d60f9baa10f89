"""Starting runs from Python, and going on with them: by one process, a crew of several, workers that come and go, a pipeline."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from shoestring.budget.machine import cache_folder
from shoestring.config import Tree
from shoestring.errors import UsageError
from shoestring.launch.alone import Alone
from shoestring.launch.crew import Crew, is_worker, require_distributed
from shoestring.launch.elastic import Elastic, Hosting
from shoestring.launch.host import LOOPBACK
from shoestring.launch.pipeline import PipelineWay
from shoestring.launch.request import TrainingRequest
from shoestring.launch.resuming import resumed_config
from shoestring.launch.view import LogView, View
from shoestring.launch.way import Ended, LaunchContext, Way
from shoestring.sync.transport.heartbeat import TIMEOUT
from shoestring.train.allocator import keep_freed_memory
from shoestring.train.execution import keep_compiled_code, require_device
from shoestring.train.run_folder import RunFolder

log = logging.getLogger(__name__)


class Launch:
    """Starts runs by the way that their transport asks for. A context manager: folders stay locked until it is left.

        with Launch() as launch:
            ended = launch.begin(Request.of({"budget": "2m", "workers": 2, "sync": "muloco"}), Path("runs/a"))

    view: what the run is shown to; None: Python's `logging`.
    heartbeat_timeout: of several processes: seconds without a heartbeat until one counts as frozen.
    hosting: of workers that come and go: how this process hosts them.
    command: of several processes: the words of the command that each of them runs; None: `python -m shoestring.launch`.
    resume_command: beside it: those of one that goes on with a run, whose folder follows.
    max_restarts: of several processes: how often the run goes on by itself from its last checkpoint, where one of them is lost.
    """

    def __init__(
        self,
        view: View | None = None,
        *,
        heartbeat_timeout: float = TIMEOUT,
        hosting: Hosting | None = None,
        command: Sequence[str] | None = None,
        resume_command: Sequence[str] | None = None,
        max_restarts: int = 0,
    ) -> None:
        self.view: View = view or LogView()
        self.held = ExitStack()
        self.hosting, self.max_restarts = hosting or Hosting(), max_restarts
        place = LaunchContext(self.view, self.held)
        alone = Alone(place)
        crew = Crew(place, heartbeat_timeout, command, resume_command, max_restarts)
        self._ways: dict[str, Callable[[int], Way]] = {
            "local": lambda workers: alone,
            "distributed": lambda processes: crew if processes > 1 or is_worker() else alone,
            "torchft": lambda workers: Elastic(place, self.hosting),
            "pipeline": lambda workers: PipelineWay(place),
        }

    def begin(self, request: TrainingRequest, out: Path) -> Ended:
        """Train a new run.

        request: what is asked for.
        out: the run's folder, which must be new or empty.
        Raises: UsageError, ShoestringError (`Diverged`, `NothingTrained` and `WorkerFailed` among them).
        """
        return self._way(request.transport, request.processes).begin(request, out)

    def resume(self, path: Path, step: int | None = None, moved: Tree | None = None) -> Ended:
        """Go on with a run.

        path: the run's folder.
        step: of the checkpoint to go on from; None: the newest.
        moved: where its files lie now, as far as they were moved: {"data": {"corpus": PATH}}.
        Raises: as `begin`; UsageError too where the run has finished.
        """
        config = resumed_config(RunFolder.open(path), moved or {})
        require_device(config.execution)
        return self._way(config.transport, config.processes).resume(path, step, moved or {})

    def _way(self, transport: str, processes: int) -> Way:
        if transport != "torchft" and (self.hosting.restart or self.hosting.listen != LOOPBACK):
            raise UsageError(
                f"--restart and --listen go with --transport torchft, whose workers come and go, not with {transport}"
            )
        if self.max_restarts and is_worker():
            raise UsageError(
                "--max-restarts: who has started this process starts it again; torchrun has the same option"
            )
        if self.max_restarts and (transport != "distributed" or processes == 1):
            raise UsageError(
                "--max-restarts goes with several processes of a fixed number: --workers, or a section [parallel], and "
                "--transport distributed"
            )
        require_distributed(transport)
        if not keep_freed_memory():
            log.warning("note: this C library cannot be told to keep freed memory: steps on a CPU are slower")
        keep_compiled_code(cache_folder())
        return self._ways[transport](processes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.held.__exit__(kind, error, trace)
