"""A run of a toy model by workers that come and go, as processes, for the tests of `Elastic`."""

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from churning import HEARTBEAT_TIMEOUT, PASSPORT, TIMEOUT, TOKEN
from torch import nn

from shoestring.sync.board import Board
from shoestring.sync.codecs.linear import Linear
from shoestring.sync.diloco import DiLoCo
from shoestring.sync.door import Door, Entry
from shoestring.sync.elastic import Elastic, Meeting, RunOver
from shoestring.sync.feedback import ErrorFeedback, Held
from shoestring.sync.lighthouse import Lighthouse
from shoestring.sync.outer import OuterSGD
from shoestring.sync.transport.fault_tolerant import FaultTolerantTransport
from shoestring.train.inner import InnerState

EVERY, SEQUENCES, TOKENS = 5, 2, 7

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    ["shoestring.sync.elastic", "shoestring.sync.board", "shoestring.sync.codecs.linear", "torchft.process_group"]
)


class Toy(nn.Module):
    """A worker's model and inner optimiser; every sequence has a vector of its own to be near to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 8))
        self.bias = nn.Parameter(torch.zeros(8))
        self.inner = torch.optim.SGD([self.weight, self.bias], lr=0.05, momentum=0.9)

    def train_on(self, sequences: Sequence[int]) -> None:
        self.inner.zero_grad()
        for sequence in sequences:
            generator = torch.Generator().manual_seed(sequence)
            inputs, goal = torch.randn(6, generator=generator), torch.randn(8, generator=generator)
            (inputs @ self.weight + self.bias - goal).square().mean().backward()
        self.inner.step()

    def outer(self, held: Held = "accumulator", **more: Any) -> DiLoCo:
        feedback = ErrorFeedback(0.9, held)
        return DiLoCo(self, every=EVERY, codec=Linear(bits=4), feedback=feedback, outer=OuterSGD(0.7, 0.6), **more)


def take_part(pipe: Connection, door: tuple[str, int], number: int, log: Path, enough: Path, first: int) -> None:
    """Train until the file `enough` is there. Every sequence is written to the log after its step."""
    torch.set_num_threads(1)
    toy = Toy()
    meetings: list[Any] = []
    with Entry(*door, TOKEN, PASSPORT) as entry:
        board = Board(entry.store)
        elastic = Elastic(
            toy.outer(),
            f"worker{number}",
            sequences=SEQUENCES,
            inner=InnerState(toy.inner),
            over=lambda: bool(board.over()),
            record=meetings.append,
        )
        link = partial(FaultTolerantTransport, f"worker{number}", lighthouse=entry.lighthouse, store=entry.store)
        elastic.connect(partial(link, token=TOKEN, passport=PASSPORT, timeout=TIMEOUT, patience=40, heartbeat=0.1))
        board.assemble(f"worker{number}", [f"worker{each}" for each in range(first)], patience=30)
        try:
            with open(log, "a", buffering=1) as written:
                elastic.meet()
                while not enough.exists():
                    train_a_period(elastic, toy, written)
                    elastic.meet()
            board.close_run(f"worker{number}")
            while True:
                elastic.meet()
        except RunOver:
            pass
        weights = {name: weight.tolist() for name, weight in elastic.outer.weights.items()}
        pipe.send((weights, elastic.tally.plain(), meetings))
        pipe.recv()
        elastic.transport.close()


def train_a_period(elastic: Elastic, toy: Toy, written: Any) -> None:
    for _ in range(EVERY):
        start = elastic.tally.start_of(elastic.rank, elastic.outer.steps, SEQUENCES)
        sequences = range(start, start + SEQUENCES)
        toy.train_on(sequences)
        elastic.step(SEQUENCES * TOKENS, 1)
        written.write("".join(f"{sequence}\n" for sequence in sequences))
        time.sleep(0.01)


def keep(pipe: Connection) -> None:
    with (
        Lighthouse(join_timeout=20, heartbeat_timeout=HEARTBEAT_TIMEOUT, quorum_tick=0.02) as lighthouse,
        Door(token=TOKEN, passport=PASSPORT, services=lighthouse.services) as door,
    ):
        pipe.send(door.address)
        pipe.recv()


class Process:
    """A process of the run, from outside."""

    def __init__(self, work: Any, *given: Any) -> None:
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, *given), daemon=True)
        self.process.start()
        other.close()

    def hear(self, patience: float = 60) -> Any:
        assert self.pipe.poll(patience), f"nothing for {patience} s"
        return self.pipe.recv()

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)  # type: ignore[arg-type]

    def end(self) -> None:
        self.process.kill()
        self.process.join()


class ToyRun:
    """A lighthouse and workers. folder: of their logs."""

    def __init__(self, folder: Path, workers: int) -> None:
        os.environ.setdefault("RUST_LOG", "warn")
        self.folder, self.workers = folder, workers
        self.keeper = Process(keep)
        self.door = self.keeper.hear()
        self.running = {number: self.start(number) for number in range(workers)}

    def start(self, number: int) -> Process:
        log = self.folder / f"worker{number}.txt"
        return Process(take_part, self.door, number, log, self.folder / "enough", self.workers)

    def trained(self, number: int) -> list[int]:
        """Sequences that a worker has trained on, in order, whatever became of them."""
        log = self.folder / f"worker{number}.txt"
        return [int(line) for line in log.read_text().split()] if log.exists() else []

    def until(self, number: int, sequences: int, patience: float = 60) -> None:
        """Wait until a worker has trained on so many."""
        end = time.monotonic() + patience
        while len(self.trained(number)) < sequences:
            assert time.monotonic() < end, f"worker {number} does not go on"
            time.sleep(0.01)

    def kill(self, number: int) -> None:
        self.running.pop(number).end()

    def restart(self, number: int) -> None:
        self.running[number] = self.start(number)

    def freeze(self, number: int) -> None:
        self.running[number].signal(signal.SIGSTOP)

    def thaw(self, number: int) -> None:
        self.running[number].signal(signal.SIGCONT)

    def results(self) -> list[tuple[Any, Any, list[Meeting]]]:
        """End the run: (global weights, tally, attempts at rounds) of each worker."""
        (self.folder / "enough").touch()
        found = [self.running[number].hear() for number in sorted(self.running)]
        for process in self.running.values():
            process.pipe.send("end")
        return found

    def close(self) -> None:
        for process in [*self.running.values(), self.keeper]:
            process.end()
