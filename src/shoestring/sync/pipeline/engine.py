"""A model trained by a pipeline of processes, any of which may die at any moment."""

import math
import pickle
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.pipeline import checkpoints
from shoestring.sync.pipeline.accounts import Accounts
from shoestring.sync.pipeline.batch import MicroBatch, StepReport
from shoestring.sync.pipeline.part import OptimizerFactory, check_parts
from shoestring.sync.pipeline.processes import StageLost, StageProcesses
from shoestring.sync.pipeline.recovery import Recovery
from shoestring.sync.pipeline.route import owner, parts_of
from shoestring.sync.pipeline.state import WEIGHT, weights_of
from shoestring.sync.pipeline.wire import Frame

PATIENCE = 10
"""Recoveries in a row that may be struck by another loss before the run gives up."""


class Pipeline:
    """Trains first -> stages -> last, each stage in a process of its own; `train_step` takes one optimiser step.

    first: token ids [B, T] to hidden states (the embedding); the process of the first stage holds it.
    stages: each takes hidden states to hidden states of the same shape.
    last: (hidden states, targets [B, T]) to the mean loss; the process of the last stage holds it.
    optimizer: makes the inner optimiser of a part from its module.
    batches: the micro-batches of a step, by its number; it is asked again when a step is repeated.
    recovery: what is done when a stage is lost.
    clip: largest norm of the whole gradient; None: any.
    folder: for checkpoints of the stages, with none in it yet.
    threads: of each process.
    timeout: seconds without a sign of life after which a process is given up.
    host: the address at which the processes reach each other.
    recovering: from the start, and from a loss on, until the policy's copies or checkpoints are made: a policy that keeps
    copies cannot promise to survive another loss meanwhile.

    The modules are pickled to the processes and share nothing with them afterwards; `collect` brings the weights back. So the
    modules and `optimizer` must be picklable: a function of a module's top level, or a `functools.partial` of one.

    Without failures the weights are those of the same model trained in one process on the same micro-batches, bit for bit
    where nothing is clipped: micro-batches are added up in order. Clipping uses the norm of all parts, as in one process, to
    rounding. Modules that draw random numbers (dropout) draw them from their process's own generator.

    Raises: UsageError where the parts cannot be cut so; ShoestringError where a process fails through an error of its own,
    the loss is not finite, or the policy cannot recover what was lost.
    """

    def __init__(
        self,
        first: nn.Module,
        stages: Sequence[nn.Module],
        last: nn.Module,
        *,
        optimizer: OptimizerFactory,
        batches: Callable[[int], Sequence[MicroBatch]],
        recovery: Recovery,
        clip: float | None = None,
        folder: Path | None = None,
        threads: int = 1,
        timeout: float = 30.0,
        host: str = "127.0.0.1",
    ) -> None:
        self.modules = [first, *stages, last]
        self.count, self.step, self.accounts = len(stages), 0, Accounts()
        self.recovering = True
        self._optimizer, self._batches, self._recovery = optimizer, batches, recovery
        self._clip, self._folder = clip, folder
        self._unrecovered: set[int] = set()
        self._settled = False
        check_parts(self.modules)
        recovery.check(stages)
        if folder is not None and checkpoints.complete(folder):
            raise UsageError(f"{folder} holds the checkpoints of another run: give this one a folder of its own")
        maker: Any = optimizer.func if isinstance(optimizer, partial) else optimizer
        makers = {type(module).__module__ for part in self.modules for module in part.modules()}
        preload = sorted(makers | {maker.__module__})
        self._processes = StageProcesses(
            self.count,
            self._pickled,
            host=host,
            threads=threads,
            timeout=timeout,
            preload=[m for m in preload if m != "__main__"],
        )
        try:
            self._processes.start(range(self.count))
        except BaseException:
            self.close()
            raise

    # What a user does.

    def train_step(self, lr_factor: float = 1.0) -> StepReport:
        """Take one step, however many stages are lost meanwhile.

        lr_factor: on every learning rate.
        """
        report = self.gradients()
        self.apply(report, lr_factor)
        return report

    def gradients(self) -> StepReport:
        """Have the stages compute the gradient of the next step's batch, however many are lost meanwhile.

        The step is the one that the pipeline stands at: an earlier one where a lost stage has set it back.
        """
        while True:
            try:
                self._settle()
                return self._gradients()
            except StageLost:
                self._recover()

    def apply(self, report: StepReport, lr_factor: float = 1.0) -> None:
        """Have the stages take the step whose gradient they have.

        report: what `gradients` returned.
        lr_factor: on every learning rate.
        """
        try:
            self._apply(report, lr_factor)
            self._settle()
        except StageLost:
            self._recover()  # the others have stepped, so the step stands

    def collect(self) -> None:
        """Load the processes' weights into the modules that were given."""
        self._fetch(optimizer=False)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the processes go on from, beside their weights, which are loaded into the modules: (tensors by
        'PART/NAME', JSON values)."""
        tensors: dict[str, Tensor] = {}
        values = []
        for number, answer in enumerate(self._fetch(optimizer=True)):
            tensors |= {f"{number}/{name}": t for name, t in answer.tensors.items() if not name.startswith(WEIGHT)}
            values.append({key: answer.fields[key] for key in ("values", "squared_norm", "lr_scale")})
        return tensors, {"step": self.step, "parts": values}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from the modules' weights and from what `state` returned.

        Raises: ShoestringError where that is of a pipeline cut in another way.
        """
        if len(values["parts"]) != len(self.modules):
            raise ShoestringError(
                f"the checkpoint is of {len(values['parts']) - 2} stages, and this pipeline has {self.count}"
            )
        while True:
            try:
                for number, (module, kept) in enumerate(zip(self.modules, values["parts"], strict=True)):
                    own = {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(f"{number}/")}
                    state = weights_of(module) | own
                    self._processes.ask(owner(number, self.count), "put", {"part": number, **kept}, state)
                break
            except StageLost:
                self._replace()
        self.step, self._settled = values["step"], False

    def _fetch(self, *, optimizer: bool) -> list[Frame]:
        """What the processes hold, part by part; the weights are loaded into the modules."""
        while True:
            answers = []
            try:
                for number in range(len(self.modules)):
                    fields = {"part": number, "optimizer": optimizer}
                    answers.append(self._processes.ask(owner(number, self.count), "fetch", fields))
            except StageLost:
                self._recover()
                continue
            for module, answer in zip(self.modules, answers, strict=True):
                found = answer.tensors.items()
                module.load_state_dict({n.removeprefix(WEIGHT): t for n, t in found if n.startswith(WEIGHT)})
            return answers

    def _replace(self) -> None:
        """Start the processes of lost stages again, empty."""
        lost = set(self._processes.lost)
        self.accounts.failures += len(lost)
        self._processes.start(lost)

    def processes(self) -> list[int]:
        """The process ids of the stages."""
        return [self._processes.members[stage].process.pid for stage in range(self.count)]

    def bytes_by_role(self) -> Counter[str]:
        """Bytes given to links so far: 'activation', 'gradient', 'batch', 'copy', 'recovery', 'weights', 'control'."""
        return self._processes.bytes_by_role()

    def close(self) -> None:
        """End the processes."""
        self._processes.close()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What a recovery policy asks for: see `recovery.base.Stages`.

    def inherit(
        self, part: int, sources: Sequence[tuple[int, int]], *, power: float = 2.0, lr_scale: float = 1.0
    ) -> None:
        order, taker = self._processes.next_order(), owner(part, self.count)
        fields = {"part": part, "sources": len(sources), "power": power, "lr_scale": lr_scale}
        self._processes.send(taker, Frame("inherit", order, fields))
        for number, (stage, source) in enumerate(sources):
            fields = {"part": source, "to": taker, "source": number, "hold": False, "optimizer": False}
            self._processes.send(stage, Frame("give", order, fields))
        self._processes.replies(order, [taker])

    def hold(self, part: int, at: int, *, optimizer: bool = False) -> None:
        order = self._processes.next_order()
        fields = {"part": part, "to": at, "hold": True, "optimizer": optimizer}
        self._processes.send(owner(part, self.count), Frame("give", order, fields))
        self._processes.replies(order, [at])

    def save(self, keep: int) -> None:
        folder = self._checkpoints()
        if self.step in checkpoints.complete(folder):
            return
        paths = [checkpoints.stage_file(folder, self.step, stage) for stage in range(self.count)]
        answers = self._order_all("save", [{"path": str(path)} for path in paths])
        checkpoints.seal(folder, self.step, [answer.fields["sha256"] for answer in answers], keep)

    def load(self) -> None:
        folder = self._checkpoints()
        steps = checkpoints.complete(folder)
        if not steps:
            raise ShoestringError(f"{folder} holds no complete checkpoint to go back to")
        paths = [str(checkpoints.stage_file(folder, steps[-1], stage)) for stage in range(self.count)]
        digests = checkpoints.digests(folder, steps[-1])
        self._order_all("load", [{"path": p, "sha256": d} for p, d in zip(paths, digests, strict=True)])
        self.accounts.roll_back(steps[-1])
        self.step = steps[-1]

    # Within.

    def _settle(self) -> None:
        """The copies and checkpoints that are due, at the start and after every step."""
        if not self._settled:
            began = time.perf_counter()
            self._recovery.settle(self)
            self.accounts.seconds["upkeep"] += time.perf_counter() - began
            self._settled, self.recovering = True, False

    def _gradients(self) -> StepReport:
        """All stages have the gradient of the step's batch."""
        micros = self._batches(self.step)
        tokens, began = sum(micro.tokens for micro in micros), time.perf_counter()
        if not tokens:
            raise UsageError(f"step {self.step} has no tokens")
        self.accounts.tokens_seen += tokens
        self._began = began
        order = self._processes.next_order()
        try:
            for number, micro in enumerate(micros):
                route = self._recovery.route(self.step * len(micros) + number, self.count)
                plan = {
                    "micro": number,
                    "micros": len(micros),
                    "route": route,
                    "share": micro.tokens / tokens,
                    "part": 0,
                }
                targets = Frame("targets", order, {"micro": number}, {"x": micro.targets})
                self._processes.send(self.count - 1, targets, "batch")
                self._processes.send(0, Frame("forward", order, plan, {"x": micro.inputs}), "batch")
            answers = self._processes.replies(order, range(self.count))
        except StageLost:
            self.accounts.discard(tokens, time.perf_counter() - began)
            raise
        losses = answers[self.count - 1].fields["losses"]
        loss = sum(each * micro.tokens / tokens for each, micro in zip(losses, micros, strict=True))
        norm = math.sqrt(sum(answer.fields["squares"] for answer in answers.values()))
        norm_1 = sum(answer.fields["absolute"] for answer in answers.values())
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise ShoestringError(f"step {self.step}: the loss is {loss} and the gradient's norm {norm}")
        return StepReport(self.step, loss, norm, norm_1, tokens)

    def _apply(self, report: StepReport, lr_factor: float) -> None:
        """All stages take the step."""
        factor = 1.0 if self._clip is None else min(1.0, self._clip / (report.gradient_norm + 1e-6))
        fields = {"gradient_factor": factor, "lr_factor": lr_factor}
        self.step, self._settled = self.step + 1, False
        try:
            self._order_all("apply", [fields] * self.count)
        finally:
            self.accounts.stand(report.tokens, time.perf_counter() - self._began)

    def _recover(self) -> None:
        """Replace the processes of the lost stages and let the policy fill them."""
        began, self.recovering = time.perf_counter(), True
        for _ in range(PATIENCE):
            lost = set(self._processes.lost)
            self.accounts.failures += len(lost)
            self._unrecovered |= lost
            try:
                self._processes.start(lost)
                self._recovery.recover(self, sorted(self._unrecovered))
            except StageLost:
                continue
            self._unrecovered.clear()
            self._settled = False
            self.accounts.seconds["recovery"] += time.perf_counter() - began
            return
        raise ShoestringError(f"{PATIENCE} recoveries in a row were struck by another loss")

    def _order_all(self, kind: str, fields: Sequence[Mapping[str, object]]) -> list[Frame]:
        """Give every stage an order; their answers, in the order of stages."""
        order = self._processes.next_order()
        for stage in range(self.count):
            self._processes.send(stage, Frame(kind, order, fields[stage]))
        answers = self._processes.replies(order, range(self.count))
        return [answers[stage] for stage in range(self.count)]

    def _pickled(self, stage: int) -> bytes:
        """What the process of a stage is made from."""
        parts = {number: self.modules[number] for number in parts_of(stage, self.count)}
        try:
            return pickle.dumps((parts, self._optimizer))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UsageError(f"stage {stage} cannot be sent to its process: {error}") from None

    def _checkpoints(self) -> Path:
        if self._folder is None:
            raise UsageError("checkpoints need a folder: give the pipeline one")
        return self._folder
