"""Faults for workers that come and go: a seeded trace of them, and a proxy to a run's listener that can be cut."""

import random
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass

KINDS = {"kill": 0.4, "freeze": 0.3, "late": 0.15, "cut": 0.15}
AWAY = {"kill": (2.0, 12.0), "freeze": (1.0, 15.0), "late": (20.0, 60.0), "cut": (3.0, 12.0)}
REST = 8.0
"""Seconds that a worker is left alone after a fault, to come back."""


@dataclass(frozen=True)
class Fault:
    """at: seconds after the first committed round. worker: which, or the name of one that comes late. seconds: until it ends."""

    at: float
    worker: str
    kind: str
    seconds: float


def draw(seed: int, faults: int, seconds: float, workers: int, scale: float = 1.0) -> list[Fault]:
    """A trace: the same for the same arguments. scale: of how long faults last."""
    chance = random.Random(seed)
    kinds = list(KINDS)
    drawn: list[Fault] = []
    free = {str(rank): 0.0 for rank in range(workers)}
    for number, at in enumerate(sorted(chance.uniform(0.03, 0.93) * seconds for _ in range(faults))):
        kind = chance.choices(kinds, [KINDS[each] for each in kinds])[0]
        away = scale * chance.uniform(*AWAY[kind])
        order = chance.sample(sorted(free), len(free))
        busy = sum(fault.at <= at < fault.at + fault.seconds for fault in drawn if fault.kind != "late")
        ready = [worker for worker in order if free[worker] <= at]
        if kind == "late" or not ready or busy >= workers // 2:
            drawn.append(
                Fault(at, f"late-{number}", "late", min(scale * chance.uniform(*AWAY["late"]), 0.97 * seconds - at))
            )
            continue
        drawn.append(Fault(at, ready[0], kind, away))
        free[ready[0]] = at + away + scale * REST
    return drawn


class Proxy:
    """A proxy to a run's listener that can be cut."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target, self.whole = target, True
        self.links: set[socket.socket] = set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self.listener.accept()
            except OSError:
                return
            if not self.whole:
                link.close()
                continue
            try:
                other = socket.create_connection(self.target, timeout=5)
            except OSError:
                link.close()
                continue
            other.settimeout(None)
            self.links |= {link, other}
            for source, sink in ((link, other), (other, link)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
        except OSError:
            pass
        for each in (source, sink):
            self.links.discard(each)
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def cut(self) -> None:
        self.whole = False
        for link in list(self.links):
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self.whole = True

    def close(self) -> None:
        self.cut()
        self.listener.close()
