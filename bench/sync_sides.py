"""The sides of sync_peers.py, and one worker of it: a process that trains under every side in turn.

`python sync_sides.py FOLDER` is that worker, under `launch.processes.launch`: settings are in FOLDER/settings.json, and what it
found goes to FOLDER/found-RANK.json.
"""

import contextlib
import hashlib
import json
import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from shoestring import atomic
from shoestring.budget.budget import Budget
from shoestring.budget.machine import cache_folder
from shoestring.config import Choice
from shoestring.contract.objective import At
from shoestring.data.config import DataConfig
from shoestring.data.prepare import prepare
from shoestring.data.windows import Batch
from shoestring.errors import UsageError
from shoestring.model.config import ModelConfig
from shoestring.optim.composite import scale_learning_rates
from shoestring.optim.partition import members
from shoestring.sync.codecs.linear import Linear
from shoestring.sync.diloco import DiLoCo
from shoestring.sync.feedback import ErrorFeedback
from shoestring.sync.outer import OuterSGD
from shoestring.sync.rendezvous.joining import join, leave
from shoestring.sync.transport.base import Transport
from shoestring.train.allocator import keep_freed_memory
from shoestring.train.assembly import Parts, assemble
from shoestring.train.config import RunConfig
from shoestring.train.sections import ExecutionConfig, TrainConfig

PATIENCE = 120.0


@dataclass(frozen=True)
class Place:
    """Where a side is built. lighthouse: 'host:port' of its own, for torchft."""

    settings: dict[str, Any]
    transport: Transport
    lighthouse: str


def written() -> dict[int, int]:
    """Bytes this process has given to each TCP connection it has open to another process, by inode, as the kernel counts them.

    Linux, struct tcp_info: bytes_sent - bytes_retrans + notsent_bytes; payload, without the headers of TCP and IP.
    """
    found: dict[int, tuple[int, int, int]] = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # one that listens, or was closed meanwhile
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                if one.family not in (socket.AF_INET, socket.AF_INET6) or one.type != socket.SOCK_STREAM:
                    continue
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                (waiting,), (sent, again) = struct.unpack_from("=I", info, 144), struct.unpack_from("=QQ", info, 200)
                ports = one.getsockname()[1], one.getpeername()[1]
                found[os.fstat(one.fileno()).st_ino] = (*ports, sent - again + waiting)
    here = {port for port, _, _ in found.values()}
    return {inode: count for inode, (_, peer, count) in found.items() if peer not in here}


class Side:
    """One worker's model under one implementation; a subclass exchanges in `update`.

    step_seconds: of each step without an exchange. sync_seconds: from the end of an inner step to the end of the exchange after
    it. sent: bytes of each exchange by the kernel; counted: by the implementation itself, where it counts.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts, self.stepper, self.model = parts, parts.stepper, parts.model
        self.step_seconds, self.sync_seconds, self.losses = list[float](), list[float](), list[float]()
        self.sent, self.counted = list[int](), list[int]()
        self.start, self._inner = self.weights(), 0.0
        # the first of the optimiser's hooks: torchft exchanges in one that comes after
        self.stepper.optimizer.register_step_post_hook(self._inner_done)

    def _inner_done(self, *_: Any) -> None:
        self._inner = time.perf_counter()

    def update(self, factor: float) -> None:
        """The inner step, and whatever exchange follows it."""
        raise NotImplementedError

    def train(self, batch: Batch, number: int, factor: float, due: bool) -> None:
        began = time.perf_counter()
        self.losses.append(self.stepper.gradients(batch, At(number)).loss)
        if not due:
            self.update(factor)
            self.step_seconds.append(time.perf_counter() - began)
            return
        dist.barrier()  # so that no exchange is charged with the wait for the other worker's passes
        before = written()
        self.update(factor)
        self.sync_seconds.append(time.perf_counter() - self._inner)
        self.sent.append(sum(count - before.get(inode, 0) for inode, count in written().items()))

    def weights(self) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten().float() for parameter in self.model.parameters()])


class Ours(Side):
    def __init__(self, place: Place, *, muon: bool = False, compressed: bool = False) -> None:
        settings = place.settings
        super().__init__(_parts(settings, "muon" if muon else "adamw"))
        self.outer = DiLoCo(
            self.model,
            self.stepper.optimizer,
            every=settings["every"],
            codec=Linear(bits=2) if compressed else None,
            feedback=ErrorFeedback(settings["feedback"]) if compressed else None,
            transport=place.transport,
            outer=OuterSGD(settings["outer_lr"], settings["muon_momentum" if muon else "outer_momentum"]),
            roles={member.name: member.role for member in members(self.model)},
        )

    def update(self, factor: float) -> None:
        self.stepper.apply(factor)
        self.counted += [ended.sent for ended in self.outer.step()]


class Torchft(Side):
    def __init__(self, place: Place, **options: bool) -> None:
        from torchft import local_sgd, manager, process_group

        logging.getLogger("torchft").setLevel(logging.ERROR)  # it warns that NCCL cannot be reset
        settings, rank = place.settings, place.transport.rank
        super().__init__(_parts(settings, "adamw"))
        # a replica group has a store of its own, in which its Manager leaves its address
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.manager = manager.Manager(
            pg=process_group.ProcessGroupGloo(timeout=timedelta(seconds=PATIENCE)),
            load_state_dict=self.model.load_state_dict,
            state_dict=self.model.state_dict,
            min_replica_size=place.transport.size,
            use_async_quorum=False,
            init_sync=False,
            timeout=timedelta(seconds=PATIENCE),
            rank=0,
            world_size=1,
            store_addr="127.0.0.1",
            store_port=self.store.port,
            lighthouse_addr=f"http://{place.lighthouse}",
            replica_id=f"worker{rank}",
            hostname="127.0.0.1",
        )
        self.outer = local_sgd.DiLoCo(
            self.manager,
            [self.model],
            self.stepper.optimizer,
            torch.optim.SGD(
                self.model.parameters(), lr=settings["outer_lr"], momentum=settings["outer_momentum"], nesterov=True
            ),
            sync_every=settings["every"],
            **options,
        )
        self.outer.__enter__()

    def update(self, factor: float) -> None:
        rounds = self.manager.current_step()
        self.stepper.apply(factor)
        due = len(self.losses) % self.outer._sync_every == 0
        if self.manager.current_step() != rounds + due:
            raise UsageError("torchft did not commit a round, and its weights are not those of the comparison any more")


class Exogym(Side):
    def __init__(self, place: Place, *, unshared: bool = False) -> None:
        from exogym.strategy import DiLoCoStrategy, OptimSpec

        settings = place.settings
        super().__init__(_parts(settings, "adamw"))
        self.unshared = unshared
        outer = {"lr": settings["outer_lr"], "momentum": settings["outer_momentum"], "nesterov": True}
        self.strategy = DiLoCoStrategy(
            optim_spec=OptimSpec(lambda parameters: self.stepper.optimizer),
            outer_optim_spec=OptimSpec(torch.optim.SGD, **outer),
            H=settings["every"],
        )
        self.strategy._init_node(self.model, place.transport.rank, place.transport.size)
        # it looks before it counts the step, and would exchange after steps H + 1, 2 H + 1 ...
        self.strategy.local_step = 1

    def update(self, factor: float) -> None:
        scale_learning_rates(self.stepper.optimizer, factor)
        self.strategy.step()
        self.stepper.optimizer.zero_grad()
        if self.unshared:
            for parameter in self.model.parameters():
                parameter.data = parameter.data.clone()


SIDES: dict[str, Callable[[Place], Side]] = {
    "shoestring": Ours,
    "torchft": Torchft,
    "torchft_bucketed": partial(Torchft, use_bucketization=True),
    "torchft_quantised": partial(Torchft, should_quantize=True),
    "exogym": Exogym,
    "exogym_unshared": partial(Exogym, unshared=True),
    "shoestring_2bit": partial(Ours, compressed=True),
    "shoestring_muon": partial(Ours, muon=True),
    "shoestring_muon_2bit": partial(Ours, muon=True, compressed=True),
}
"""By name, the one that all are compared with first. Of the plain ones of each maker nothing differs but who exchanges."""


def _parts(settings: dict[str, Any], inner: str) -> Parts:
    """The model, its inner optimiser and this worker's batches: alike for all sides with the same inner optimiser."""
    rate = settings["muon_fallback_lr" if inner == "muon" else "lr"]
    fallback = Choice.of("optim", "adamw", lr=rate)
    config = RunConfig(
        budget=Budget.parse("1h"),  # ends nothing here: the steps are counted
        model=ModelConfig(**settings["model"]),
        seed=settings["seed"],
        optim=Choice.of("optim", "muon", lr=settings["muon_lr"]) if inner == "muon" else fallback,
        fallback=fallback,
        workers=settings["workers"],
        sync=Choice.of("sync", "diloco", kind="outer loop"),
        schedule=Choice.of("schedule", "wsd", decay=0.6, shape="linear"),
        train=TrainConfig(batch=settings["batch"], heldout_tokens=settings["heldout_tokens"]),
        execution=ExecutionConfig("cpu", settings["precision"], "none", "chunked", "plain"),
    )
    dataset = prepare(DataConfig(vocabulary=settings["model"]["vocabulary"]), cache_folder())
    return assemble(config, dataset, int(os.environ["RANK"]))


def work(folder: Path) -> None:
    keep_freed_memory()
    settings = json.loads((folder / "settings.json").read_text())
    transport = join(PATIENCE)
    sides = {
        name: SIDES[name](Place(settings, transport, settings["lighthouses"].get(name, "")))
        for name in settings["sides"]
    }
    order, batch, steps = list(sides), settings["batch"], settings["steps"]
    first = sides[order[0]].parts
    for number in range(steps):
        due, part = (number + 1) % settings["every"] == 0, first.source.batch(number * batch, batch)
        turn = (number + number // settings["every"]) % len(order)  # another one begins at the next exchange too
        for name in order[turn:] + order[:turn]:
            sides[name].train(part, number, first.schedule((number + 1) / steps), due)
    ours = sides[order[0]].weights()
    moved = float((ours - sides[order[0]].start).norm())
    found = {
        name: {
            "weights": hashlib.blake2b(side.weights().numpy().data, digest_size=16).hexdigest(),
            "apart": float((side.weights() - ours).norm()) / moved,
            "heldout_loss": side.parts.evaluator(side.model).loss if transport.rank == 0 else None,
            "parameters": ours.numel(),
            **{key: getattr(side, key) for key in ("losses", "step_seconds", "sync_seconds", "sent", "counted")},
        }
        for name, side in sides.items()
    }
    atomic.write_text(folder / f"found-{transport.rank}.json", json.dumps(found))
    dist.barrier()
    for side in sides.values():
        if isinstance(side, Torchft):
            side.manager.shutdown()
    leave(transport)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
