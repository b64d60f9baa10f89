"""A run of a toy model by workers that come and go, as processes, for the tests of `ElasticLoop`."""

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
from churning import FINGERPRINT, HEARTBEAT_TIMEOUT, TIMEOUT, TOKEN
from torch import nn

from shoestring.sync.codecs.linear import Linear
from shoestring.sync.diloco import DiLoCo
from shoestring.sync.elastic.fault_tolerant import FaultTolerantTransport
from shoestring.sync.elastic.lighthouse import Lighthouse
from shoestring.sync.elastic.loop import ElasticLoop, RoundAttempt, RunOver
from shoestring.sync.elastic.run_status import RunStatus
from shoestring.sync.feedback import ErrorFeedback, Held
from shoestring.sync.outer import OuterSGD
from shoestring.sync.rendezvous.listener import RunListener, ServiceTunnel
from shoestring.train.elastic.inner import InnerState

EVERY, SEQUENCES, TOKENS = 5, 2, 7

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        "shoestring.sync.elastic.loop",
        "shoestring.sync.elastic.run_status",
        "shoestring.sync.codecs.linear",
        "torchft.process_group",
    ]
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


def take_part(pipe: Connection, listener: tuple[str, int], number: int, log: Path, enough: Path, first: int) -> None:
    """Train until the file `enough` is there. Every sequence is written to the log after its step."""
    torch.set_num_threads(1)
    toy, attempts = Toy(), list[RoundAttempt]()
    with ServiceTunnel(*listener, TOKEN, FINGERPRINT) as tunnel:
        status = RunStatus(tunnel.store)
        elastic = ElasticLoop(
            toy.outer(),
            f"worker{number}",
            sequences=SEQUENCES,
            inner=InnerState(toy.inner),
            over=lambda: bool(status.finished_by()),
            record=attempts.append,
        )
        link = partial(FaultTolerantTransport, f"worker{number}", lighthouse=tunnel.lighthouse, store=tunnel.store)
        elastic.connect(
            partial(link, token=TOKEN, fingerprint=FINGERPRINT, timeout=TIMEOUT, patience=40, heartbeat=0.1)
        )
        status.wait_for_start(f"worker{number}", [f"worker{each}" for each in range(first)], timeout=30)
        try:
            with open(log, "a", buffering=1) as written:
                elastic.run_round()
                while not enough.exists():
                    train_a_period(elastic, toy, written)
                    elastic.run_round()
            status.mark_finished(f"worker{number}")
            while True:
                elastic.run_round()
        except RunOver:
            pass
        weights = {name: weight.tolist() for name, weight in elastic.outer.weights.items()}
        pipe.send((weights, elastic.tally.plain(), attempts))
        pipe.recv()
        elastic.transport.close()


def train_a_period(elastic: ElasticLoop, toy: Toy, written: Any) -> None:
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
        RunListener(token=TOKEN, fingerprint=FINGERPRINT, services=lighthouse.services) as listener,
    ):
        pipe.send(listener.address)
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
        self.listener = self.keeper.hear()
        self.running = {number: self.start(number) for number in range(workers)}

    def start(self, number: int) -> Process:
        log = self.folder / f"worker{number}.txt"
        return Process(take_part, self.listener, number, log, self.folder / "enough", self.workers)

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

    def results(self) -> list[tuple[Any, Any, list[RoundAttempt]]]:
        """End the run: (global weights, tally, attempts at rounds) of each worker."""
        (self.folder / "enough").touch()
        found = [self.running[number].hear() for number in sorted(self.running)]
        for process in self.running.values():
            process.pipe.send("end")
        return found

    def close(self) -> None:
        for process in [*self.running.values(), self.keeper]:
            process.end()
