"""The processes of all stages as the coordinator sees them: started, given orders, listened to, found dead, replaced."""

import multiprocessing
import queue
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.sync.pipeline.wire import Frame, Link, LinkClosed
from shoestring.sync.pipeline.worker import StageSettings, serve

FAILED = 1
"""The exit status of a process that an error of its own ended."""

START_SECONDS = 120
HELLO_SECONDS = 2
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
"""Processes forked from a server that has imported torch start in a fraction of a second."""

SLOW = "torch._dynamo"
"""Torch imports it when the first optimiser is made, which takes a second."""


class StageLost(ShoestringError):
    """A stage's process died, was cut off, or gave no sign of life for too long."""

    def __init__(self, stages: Collection[int]) -> None:
        super().__init__(f"lost: stage {', '.join(map(str, sorted(stages)))}")


@dataclass
class StageProcess:
    """A stage's process.

    heard: when it last gave a sign of life, in `time.monotonic` seconds.
    sent: its bytes by role.
    """

    process: Any
    generation: int
    link: Link
    address: tuple[str, int]
    heard: float
    sent: Mapping[str, int]


class StageProcesses:
    """stages: how many.
    pickled: what the process of a stage is made from (`worker.serve`).
    timeout: seconds without a sign of life after which a process is given up.
    preload: modules that every process needs, imported once.

    lost: stages whose processes are known to be dead and not yet replaced.
    """

    def __init__(
        self,
        stages: int,
        pickled: Callable[[int], bytes],
        *,
        host: str,
        threads: int,
        timeout: float,
        preload: list[str],
    ) -> None:
        self.stages, self.host, self.threads, self.timeout = stages, host, threads, timeout
        self.members: dict[int, StageProcess] = {}
        self.lost: set[int] = set()
        self.sent: Counter[str] = Counter()
        self._pickled, self._key, self._order = pickled, secrets.token_bytes(32), 0
        self._inbox: queue.SimpleQueue[tuple[int, int, Frame | None]] = queue.SimpleQueue()
        self._server = socket.create_server((host, 0))
        self._server.settimeout(0.2)
        self._context = multiprocessing.get_context(START_METHOD)
        self._context.set_forkserver_preload([__name__, SLOW, *preload])

    def start(self, stages: Collection[int]) -> None:
        """Start a process for each of these stages, in place of the old one if there is one, and tell all who is where.

        Raises: ShoestringError when one ended through an error of its own; StageLost when one died meanwhile.
        """
        for stage in stages:
            self._end_old(stage)
        waiting = {stage: self._spawn(stage) for stage in sorted(stages)}
        deadline = time.monotonic() + START_SECONDS
        while waiting:
            self._accept(waiting)
            ended = {stage: process.exitcode for stage, (process, _) in waiting.items() if process.exitcode is not None}
            if ended or time.monotonic() > deadline:
                for process, _ in waiting.values():
                    process.kill()
                if not ended or FAILED in ended.values():
                    raise ShoestringError(f"the process of stage {min(ended or waiting)} did not start")
                self.lost |= set(waiting)
                raise StageLost(self.lost)
        self.lost -= set(stages)
        addresses = [[*self.members[s].address, self.members[s].generation] for s in range(self.stages)]
        order = self.next_order()
        for stage in range(self.stages):
            self.send(stage, Frame("peers", order, {"addresses": addresses}))
        # what a stage that knows them passes on must not come to one that does not: they come by different links
        self.replies(order, range(self.stages))

    def next_order(self) -> int:
        self._order += 1
        return self._order

    def send(self, stage: int, frame: Frame, role: str = "control") -> None:
        """Send; where the stage turns out to be gone, `replies` will say so."""
        try:
            self.sent[role] += self.members[stage].link.send(frame)
        except LinkClosed:
            self.lost.add(stage)

    def replies(self, order: int, stages: Collection[int]) -> dict[int, Frame]:
        """The answer of each of these stages to an order. Raises: StageLost as soon as any stage is lost; ShoestringError
        where a stage answers with an error."""
        answers: dict[int, Frame] = {}
        while len(answers) < len(stages):
            if self.lost:
                raise StageLost(self.lost)
            try:
                stage, generation, frame = self._inbox.get(timeout=min(1.0, self.timeout / 4))
            except queue.Empty:
                now = time.monotonic()
                self.lost |= {s for s, member in self.members.items() if now - member.heard > self.timeout}
                continue
            if generation != self.members[stage].generation:
                continue
            if frame is None:
                self.lost.add(stage)
            elif frame.kind == "unreachable":
                if frame.fields["generation"] == self.members[frame.fields["stage"]].generation:
                    self.lost.add(frame.fields["stage"])
            elif frame.kind == "done":
                self.members[stage].sent = frame.fields["sent"]
                if frame.order == order:
                    if "error" in frame.fields:
                        raise ShoestringError(frame.fields["error"])
                    answers[stage] = frame
        return answers

    def ask(
        self, stage: int, kind: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
    ) -> Frame:
        """Give one stage an order that it answers itself."""
        order = self.next_order()
        self.send(stage, Frame(kind, order, fields, tensors or {}))
        return self.replies(order, [stage])[stage]

    def bytes_by_role(self) -> Counter[str]:
        """What all processes, those that died included, have given to their links; of a dead one up to its last answer."""
        return sum((Counter(member.sent) for member in self.members.values()), self.sent.copy())

    def close(self) -> None:
        """End all processes."""
        for stage, member in self.members.items():
            self.send(stage, Frame("stop"))
            member.process.join(2)
            if member.process.exitcode is None:
                member.process.kill()
                member.process.join()
            member.link.close()
        self.members.clear()
        self._server.close()

    def _spawn(self, stage: int) -> tuple[Any, int]:
        old = self.members.get(stage)
        generation = old.generation + 1 if old else 0
        port = self._server.getsockname()[1]
        settings = StageSettings(
            stage, self.stages, generation, self.host, port, self._key, self.threads, self.timeout / 4
        )
        process = self._context.Process(target=serve, args=(settings, self._pickled(stage)), daemon=True)  # type: ignore[attr-defined]
        process.start()
        return process, generation

    def _accept(self, waiting: dict[int, tuple[Any, int]]) -> None:
        """Take one connection, if one comes; who does not say hello at once under the run's key is turned away."""
        try:
            connected, _ = self._server.accept()
        except TimeoutError:
            return
        connected.settimeout(HELLO_SECONDS)
        link = Link(connected, self._key)
        try:
            hello = link.receive().fields
            process, generation = waiting[hello["stage"]]
            if hello["generation"] != generation:
                raise LinkClosed("a process of an earlier generation")
        except (LinkClosed, KeyError):
            link.close()
            return
        connected.settimeout(None)
        del waiting[hello["stage"]]
        member = StageProcess(process, generation, link, (self.host, hello["port"]), time.monotonic(), {})
        self.members[hello["stage"]] = member
        threading.Thread(target=self._hear, args=(hello["stage"], member), daemon=True).start()

    def _hear(self, stage: int, member: StageProcess) -> None:
        try:
            while True:
                frame = member.link.receive()
                member.heard = time.monotonic()
                if frame.kind != "alive":
                    self._inbox.put((stage, member.generation, frame))
        except LinkClosed:
            self._inbox.put((stage, member.generation, None))

    def _end_old(self, stage: int) -> None:
        """Make sure that the old process of a stage is dead, and not through an error that would come again."""
        if stage not in self.members:
            return
        member = self.members[stage]
        member.process.join(1)
        if member.process.exitcode is None:
            member.process.kill()
            member.process.join()
        member.link.close()
        self.sent += Counter(member.sent)
        member.sent = {}
        if member.process.exitcode == FAILED:
            raise ShoestringError(f"the process of stage {stage} ended with an error, which it has printed above")
