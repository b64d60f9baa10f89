"""The process of one stage: it holds its parts, passes micro-batches on, and does as the coordinator orders.

It keeps one link to the coordinator and sends to other stages over links of its own; a thread for each link that comes in
puts its frames in one inbox, which the main thread works off, so nothing ever waits on a full socket. It ends when the
coordinator's link closes, however the coordinator ended.
"""

import hashlib
import os
import pickle
import queue
import signal
import socket
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoestring import atomic
from shoestring.errors import ShoestringError
from shoestring.sync.pipeline.archive import pack, unpack
from shoestring.sync.pipeline.part import ModelPart, OptimizerFactory
from shoestring.sync.pipeline.passes import Passes
from shoestring.sync.pipeline.state import inherited, optimizer_of, restore, weights_of
from shoestring.sync.pipeline.wire import Frame, Link, LinkClosed


@dataclass(frozen=True)
class StageSettings:
    """Where a stage's process stands.

    stage: from 0, of `stages`.
    generation: counts the processes it has had.
    host, port: of the coordinator.
    key: of the run.
    alive_every: seconds between signs of life.
    """

    stage: int
    stages: int
    generation: int
    host: str
    port: int
    key: bytes
    threads: int
    alive_every: float


def serve(settings: StageSettings, pickled: bytes) -> None:
    """The process's main function.

    pickled: the modules by part and the optimiser's factory; they are bytes so that the process gets tensors of its
    own, and they come through its parent's own pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches the coordinator too, and it ends the stages
    torch.set_num_threads(settings.threads)
    modules, optimizer = pickle.loads(pickled)
    try:
        StageWorker(settings, modules, optimizer).run()
    except LinkClosed:
        os._exit(0)  # the coordinator is gone: there is nobody to tell


class StageWorker:
    """held: copies of other stages' parts, by part.
    sent: bytes by role.
    """

    def __init__(self, settings: StageSettings, modules: dict[int, nn.Module], optimizer: OptimizerFactory) -> None:
        self.settings = settings
        self.parts = {number: ModelPart(module, optimizer) for number, module in modules.items()}
        self.held: dict[int, Frame] = {}
        self.sent: Counter[str] = Counter()
        self._inbox: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._given: defaultdict[int, dict[int, Frame]] = defaultdict(dict)
        self._rebuilt: dict[int, Frame] = {}
        self._addresses: list[tuple[str, int, int]] = []
        self._links: dict[int, Link] = {}
        self._passes = Passes(settings.stage, settings.stages, self.parts, self._send, self._ready)
        self._server = socket.create_server((settings.host, 0))
        self._home = Link(socket.create_connection((settings.host, settings.port)), settings.key)
        me = {"stage": settings.stage, "generation": settings.generation, "port": self._server.getsockname()[1]}
        self._home.send(Frame("hello", fields=me))

    def run(self) -> None:
        """Work until the coordinator says stop. Raises: LinkClosed when it is gone."""
        for target in (self._listen, self._receive_orders, self._send_heartbeats):
            threading.Thread(target=target, daemon=True).start()
        names = ("peers", "apply", "give", "given", "inherit", "save", "load", "fetch", "put")
        orders = {name: getattr(self, f"_do_{name}") for name in names}
        orders |= dict.fromkeys(("forward", "targets", "backward"), self._passes.take)
        while (frame := self._inbox.get()).kind != "stop":
            try:
                orders[frame.kind](frame)
            except ShoestringError as error:
                self._done(frame.order, error=str(error))

    # What comes in, each in a thread of its own.

    def _receive_orders(self) -> None:
        try:
            while True:
                self._inbox.put(self._home.receive())
        except LinkClosed:
            os._exit(0)

    def _listen(self) -> None:
        while True:
            link = Link(self._server.accept()[0], self.settings.key)
            threading.Thread(target=self._hear, args=(link,), daemon=True).start()

    def _hear(self, link: Link) -> None:
        try:
            while True:
                self._inbox.put(link.receive())
        except LinkClosed:
            link.close()  # whether the other end died, the coordinator will see

    def _send_heartbeats(self) -> None:
        try:
            while True:
                time.sleep(self.settings.alive_every)
                self._home.send(Frame("alive"))
        except LinkClosed:
            os._exit(0)

    # What goes out.

    def _send(self, stage: int, frame: Frame, role: str) -> None:
        host, port, generation = self._addresses[stage]
        try:
            if stage not in self._links:
                self._links[stage] = Link(socket.create_connection((host, port)), self.settings.key)
            self.sent[role] += self._links[stage].send(frame)
        except OSError:
            self._home.send(Frame("unreachable", fields={"stage": stage, "generation": generation}))

    def _done(self, order: int, tensors: dict[str, torch.Tensor] | None = None, **fields: Any) -> None:
        size = self._home.send(Frame("done", order, {**fields, "sent": self.sent}, tensors or {}))
        self.sent["weights" if tensors else "control"] += size

    def _ready(self, order: int, losses: list[float]) -> None:
        squares = sum(part.measure() for part in self.parts.values())
        absolute = sum(part.absolute_sum() for part in self.parts.values())
        self._done(order, losses=losses, squares=squares, absolute=absolute)

    # What the coordinator orders. All of it is answered with 'done', by the stage where it ends.

    def _do_peers(self, frame: Frame) -> None:
        """The address and generation of every stage's process; links to processes that were replaced are dropped."""
        addresses = [(host, port, generation) for host, port, generation in frame.fields["addresses"]]
        for stage in list(self._links):
            if self._addresses[stage] != addresses[stage]:
                self._links.pop(stage).close()
        self._addresses = addresses
        self._done(frame.order)

    def _do_apply(self, frame: Frame) -> None:
        """Step on the gradients of the present attempt."""
        for part in self.parts.values():
            part.apply(frame.fields["gradient_factor"], frame.fields["lr_factor"])
        self._done(frame.order)

    def _do_give(self, frame: Frame) -> None:
        """Send a part, or the copy of one held here, to the stage `to`: to be held there, or as one source of what it
        inherits. With its optimiser's state if asked."""
        number, fields = frame.fields["part"], dict(frame.fields)
        if number in self.parts:
            part = self.parts[number]
            tensors, values = optimizer_of(part.optimizer) if fields["optimizer"] else ({}, None)
            fields |= {"values": values, "squared_norm": part.squared_norm}
            tensors |= weights_of(part.module)
        elif number in self.held:
            fields = {**self.held[number].fields, **fields}
            tensors = dict(self.held[number].tensors)
        else:
            raise ShoestringError(f"part {number} is lost: stage {self.settings.stage} holds no copy of it")
        self._send(fields["to"], Frame("given", frame.order, fields, tensors), "copy" if fields["hold"] else "recovery")

    def _do_given(self, frame: Frame) -> None:
        if frame.fields["hold"]:
            self.held[frame.fields["part"]] = frame
            self._done(frame.order)
        else:
            self._given[frame.order][frame.fields["source"]] = frame
            self._inherit(frame.order)

    def _do_inherit(self, frame: Frame) -> None:
        """Become the average of what `sources` stages give, weighted by the `power` of their gradients' norms."""
        self._rebuilt[frame.order] = frame
        self._inherit(frame.order)

    def _inherit(self, order: int) -> None:
        if order not in self._rebuilt or len(self._given[order]) < self._rebuilt[order].fields["sources"]:
            return
        fields = self._rebuilt.pop(order).fields
        given = [each for _, each in sorted(self._given.pop(order).items())]
        squares = [each.fields["squared_norm"] for each in given]
        part = self.parts[fields["part"]]
        states = [each.tensors for each in given]
        state = inherited(states, [square ** (fields["power"] / 2) for square in squares])
        restore(part.module, part.optimizer, state, given[0].fields["values"] if len(given) == 1 else None)
        part.squared_norm, part.lr_scale = sum(squares) / len(squares), fields["lr_scale"]
        self._done(order)

    def _do_save(self, frame: Frame) -> None:
        content = pack(self.parts)
        atomic.write_bytes(Path(frame.fields["path"]), content)
        self._done(frame.order, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))

    def _do_load(self, frame: Frame) -> None:
        path = Path(frame.fields["path"])
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ShoestringError(f"{path} cannot be read: {error.strerror}") from None
        if hashlib.sha256(content).hexdigest() != frame.fields["sha256"]:
            raise ShoestringError(f"{path} is damaged: its checksum is not the one recorded")
        unpack(content, self.parts, str(path))
        self._done(frame.order)

    def _do_fetch(self, frame: Frame) -> None:
        """Answer with a part's weights; where `optimizer` says so, with all else that it goes on from too."""
        part = self.parts[frame.fields["part"]]
        if not frame.fields["optimizer"]:
            self._done(frame.order, weights_of(part.module))
            return
        tensors, values = optimizer_of(part.optimizer)
        kept = {"values": values, "squared_norm": part.squared_norm, "lr_scale": part.lr_scale}
        self._done(frame.order, weights_of(part.module) | tensors, **kept)

    def _do_put(self, frame: Frame) -> None:
        """Go on from what `fetch` answered with."""
        part = self.parts[frame.fields["part"]]
        restore(part.module, part.optimizer, frame.tensors, frame.fields["values"])
        part.squared_norm, part.lr_scale = frame.fields["squared_norm"], frame.fields["lr_scale"]
        self._done(frame.order)
