"""Workers for the tests of churn, as processes: a vector that all share, to which each round adds the mean of what they bring.

They are forked from a process that has imported everything and done nothing else, for the imports take seconds.
"""

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

import torch

from shoestring.errors import ShoestringError
from shoestring.sync.elastic import mesh
from shoestring.sync.elastic.fault_tolerant import FaultTolerantTransport
from shoestring.sync.elastic.lighthouse import Lighthouse
from shoestring.sync.rendezvous.admission import RunFingerprint
from shoestring.sync.rendezvous.listener import RunListener, ServiceTunnel
from shoestring.sync.transport.base import PeerLost

TOKEN = "the token of this run"
FINGERPRINT = RunFingerprint(workers=0, recipe="r", model="m", data="d")
HEARTBEAT_TIMEOUT = 1.5
TIMEOUT = 2.0
LENGTH = 50_000

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["shoestring.sync.elastic.fault_tolerant", "torchft.process_group"])


def keep_lighthouse(pipe: Connection, port: int) -> None:
    """The process of the lighthouse and its listener, until it is killed."""
    with (
        Lighthouse(join_timeout=20, heartbeat_timeout=HEARTBEAT_TIMEOUT, quorum_tick=0.02) as lighthouse,
        RunListener(
            ("127.0.0.1", port), token=TOKEN, fingerprint=FINGERPRINT, services=lighthouse.services
        ) as listener,
    ):
        pipe.send(listener.address)
        pipe.recv()


class Model:
    def __init__(self) -> None:
        self.vector = torch.zeros(LENGTH)

    def save(self) -> Any:
        return {"vector": self.vector}, {"sum": float(self.vector[0])}

    def load(self, tensors: Any, values: Any) -> None:
        assert values == {"sum": float(tensors["vector"][0])}
        self.vector.copy_(tensors["vector"])


sealed = mesh.seal


def altered(*given: Any, **named: Any) -> torch.Tensor:
    frame = sealed(*given, **named)
    frame[-1] ^= 1
    return frame


def a_round(transport: FaultTolerantTransport, model: Model, number: int, how: str, pipe: Connection) -> dict[str, Any]:
    began = time.monotonic()
    member = transport.open_round()
    opened = time.monotonic()
    mine = torch.full((LENGTH,), 0.0 if member.healed else float(number + 1))
    if how == "pause":
        pipe.send("opened")
        pipe.recv()
    if how == "longer":
        mine = torch.cat([mine, mine])
    mesh.seal = altered if how == "corrupt" else sealed
    why = ""
    got: list[Any] = []
    try:
        sizes = None if how == "unsized" else [4 * LENGTH] * member.size
        got = transport.exchange([mine.view(torch.uint8)] * member.size, sizes, tag=transport.step).result()
    except PeerLost as error:
        why = str(error)
    exchanged = time.monotonic()
    applied = transport.close_round(bool(got) and None not in got)
    closed = time.monotonic()
    if applied:
        model.vector.add_(sum(message.view(torch.float32) for message in got) / member.size)
    return {
        "applied": applied,
        "nones": got.count(None),
        "why": why,
        "size": member.size,
        "ids": member.ids,
        "healed": member.healed,
        "fresh": member.fresh,
        "opening": opened - began,
        "healing": member.healing,
        "exchange": exchanged - opened,
        "vote": closed - exchanged,
    }


def work(pipe: Connection, listener: tuple[str, int], number: int) -> None:
    """A worker: answers the word 'round' (and how) with what came of it, 'state' with its step, lineage and vector."""
    torch.set_num_threads(1)
    model = Model()
    tunnel = ServiceTunnel(*listener, TOKEN, FINGERPRINT)
    transport = FaultTolerantTransport(
        f"worker{number}",
        lighthouse=tunnel.lighthouse,
        store=tunnel.store,
        token=TOKEN,
        fingerprint=FINGERPRINT,
        save=model.save,
        load=model.load,
        timeout=TIMEOUT,
        patience=40,
        heartbeat=0.1,
        limit=2**22,
    )
    pipe.send("ready")
    while (asked := pipe.recv()) != "end":
        try:
            if asked == "state":
                assert bool((model.vector == model.vector[0]).all())
                pipe.send((transport.step, transport.lineage, float(model.vector[0])))
            else:
                pipe.send(a_round(transport, model, number, asked.removeprefix("round").strip(), pipe))
        except ShoestringError as error:
            pipe.send(error)
    transport.close()
    tunnel.close()


class Worker:
    """One worker's process, from outside."""

    def __init__(self, listener: tuple[str, int], number: int) -> None:
        self.number = number
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, listener, number), daemon=True)
        self.process.start()
        other.close()

    def say(self, word: str) -> None:
        self.pipe.send(word)

    def hear(self, patience: float = 40) -> Any:
        assert self.pipe.poll(patience), f"worker {self.number} says nothing for {patience} s"
        return self.pipe.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def freeze(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)  # type: ignore[arg-type]

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)  # type: ignore[arg-type]


class Run:
    """A lighthouse behind a listener, and three workers."""

    def __init__(self) -> None:
        os.environ.setdefault(
            "RUST_LOG", "warn"
        )  # torchft is imported early, by the process that the others are forked from
        self.light()
        self.workers = [Worker(self.listener, number) for number in range(3)]
        for worker in self.workers:
            assert worker.hear() == "ready"

    def light(self, port: int = 0) -> None:
        self.pipe, other = context.Pipe()
        self.keeper = context.Process(target=keep_lighthouse, args=(other, port), daemon=True)
        self.keeper.start()
        other.close()
        assert self.pipe.poll(40)
        self.listener = self.pipe.recv()

    def darken(self) -> None:
        self.keeper.kill()
        self.keeper.join()

    def round(self, *which: int, **how: str) -> list[dict[str, Any]]:
        """A round of these workers, of all by default; how: by name, as `worker1="corrupt"`."""
        chosen = [self.workers[number] for number in (which or range(3))]
        for worker in chosen:
            worker.say(f"round {how.get(f'worker{worker.number}', '')}")
        return [worker.hear() for worker in chosen]

    def round_with(self, newcomer: int) -> list[dict[str, Any]]:
        """A round that one was not in before: it asks first, as those who were do not wait for it."""
        self.workers[newcomer].say("round")
        time.sleep(0.5)
        for worker in self.workers:
            if worker.number != newcomer:
                worker.say("round")
        return [worker.hear() for worker in self.workers]

    def together(self, patience: float = 40) -> None:
        """Go on with those that have been told to make a round, until all three were in one."""
        waiting = {worker.number for worker in self.workers}
        end = time.monotonic() + patience
        while waiting:
            assert time.monotonic() < end, f"workers {waiting} were not in a round of three"
            for worker in self.workers:
                if worker.number in waiting and worker.pipe.poll(0.02):
                    outcome = worker.hear()
                    if isinstance(outcome, dict) and outcome["applied"] and outcome["size"] == 3:
                        waiting.remove(worker.number)
                    else:
                        worker.say("round")

    def restart(self, number: int) -> None:
        self.workers[number] = Worker(self.listener, number)
        assert self.workers[number].hear() == "ready"

    def states(self) -> list[Any]:
        for worker in self.workers:
            worker.say("state")
        return [worker.hear() for worker in self.workers]

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.darken()
