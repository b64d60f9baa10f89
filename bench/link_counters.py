"""What the kernel counts on workers' links, once and over time."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from links import Links


@dataclass(frozen=True)
class Counters:
    """The kernel's own, of one worker's end: bytes and packets, as the interface saw them, Ethernet headers included."""

    sent: int
    received: int
    packets_sent: int
    packets_received: int

    def since(self, earlier: "Counters") -> "Counters":
        return Counters(*(getattr(self, name) - getattr(earlier, name) for name in self.__dataclass_fields__))


def read_counters(interface: str, *, other_end: bool = False) -> Counters:
    """Of an interface in this process's namespace. other_end: it is the bridge's end of a pair; what came is what was sent."""
    folder = Path("/sys/class/net", interface, "statistics")
    own = ["tx_bytes", "rx_bytes", "tx_packets", "rx_packets"]
    names = [own[1], own[0], own[3], own[2]] if other_end else own
    return Counters(*(int((folder / name).read_text()) for name in names))


class Sampler:
    """The counters of all links every `seconds`, until it is stopped. times: of the monotonic clock."""

    def __init__(self, net: "Links", seconds: float = 0.05) -> None:
        self.net, self.seconds = net, seconds
        self.times: list[float] = []
        self.sent: list[list[int]] = [[] for _ in net.ends]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._stop.wait(self.seconds):
            self.times.append(time.monotonic())
            for trace, counters in zip(self.sent, self.net.counters(), strict=True):
                trace.append(counters.sent)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self._stop.set()
        self._thread.join()
