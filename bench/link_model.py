"""How long training takes over links of a given rate, from what is computed and what travels: the model of slow_link.py.

K workers, each with a link of its own into a switch, `rate` bits a second each way. Three parts, all sums by hand:

* bytes: a ring or an all-to-all reduce-scatter and all-gather of a payload of q bytes has every worker send
  2 (K - 1) / K q (Patarasuk & Yuan (2009), Bandwidth optimal all-reduce algorithms, who show that none sends less);
  q = 4 N for N float32 gradients, and what the codec makes of the shapes for an exchange;
* transfer: those bytes with their headers, over the rate; where the link has a delay, also the trips that wait for it;
* exposed transfer: what training waits for. Data parallelism: every step's, save DDP's first bucket, which goes beside the rest
  of the backward pass as far as that lasts, see `beside_backward`. An outer loop: its schedule is played through, see `outer_loop`.

The compute of a step is for the caller to measure.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from shoestring.sync.codec import Codec
from shoestring.sync.exchange import STAGES
from shoestring.sync.fragments import Named
from shoestring.sync.message import BodyLayout, header_bytes
from shoestring.sync.transport.frame import HEADER_BYTES

SEGMENT, CARRIED, ACKNOWLEDGEMENT = 1514, 1448, 66
"""Bytes of a full Ethernet frame (MTU 1500, TCP with timestamps) and of payload in it, and of a frame with none."""

WINDOW = 10 * CARRIED
"""Bytes that a connection sends unacknowledged after it was idle (RFC 6928), doubled with every round trip from there."""


@dataclass(frozen=True)
class Link:
    """rate: bits a second, each way, of each worker's link. delay: seconds from one worker to another."""

    rate: float
    delay: float = 0.0

    def seconds(self, payload: float) -> float:
        """To send `payload` bytes. Headers are counted; of acknowledgements every other segment has one, as TCP delays them.

        >>> round(Link(10e6).seconds(1_250_000), 3)
        1.068
        """
        return 8 * payload * (SEGMENT + ACKNOWLEDGEMENT / 2) / CARRIED / self.rate

    def stage(self, messages: Sequence[float]) -> float:
        """To give each of several workers a message at once: all share the link, and the longest takes the round trips that
        its window needs to grow; an upper bound where the link is busy meanwhile.

        >>> link = Link(math.inf, 0.05)
        >>> [round(link.stage([size]), 2) for size in (1000, WINDOW, WINDOW + 1, 3 * WINDOW, 4 * WINDOW)]
        [0.05, 0.05, 0.15, 0.15, 0.25]
        """
        longest = max(messages, default=0.0)
        trips = max(0, math.ceil(math.log2(longest / WINDOW + 1)) - 1)
        return self.seconds(sum(messages)) + self.delay * (1 + 2 * trips)


def all_reduce_bytes(payload: float, workers: int) -> float:
    """That each worker sends.

    >>> all_reduce_bytes(4 * 1000, 4)
    6000.0
    """
    return 2 * (workers - 1) / workers * payload


def all_reduce_seconds(payload: float, workers: int, link: Link) -> float:
    """Of a ring: 2 (K - 1) hops, each of which waits for the one before it.

    >>> round(all_reduce_seconds(4 * 1000, 4, Link(8000 * 1547 / 1448, 0.01)), 6)
    6.06
    """
    return link.seconds(all_reduce_bytes(payload, workers)) + 2 * (workers - 1) * link.delay


@dataclass(frozen=True)
class Exchange:
    """One exchange of a fragment by `scatter_average`. parts: payload bytes of each worker's part. noted: bytes of a message
    of the first stage besides its payload."""

    parts: tuple[int, ...]

    @classmethod
    def of(cls, fragment: Sequence[Named], codec: Codec, workers: int) -> "Exchange":
        """From the shapes: each tensor is cut by rows into K near-equal parts; vectors travel as float32."""
        parts = []
        for part in range(workers):
            shapes = [list(parameter.shape) for _, parameter in fragment]
            for shape in shapes:
                shape[0] = shape[0] * (part + 1) // workers - shape[0] * part // workers
            parts.append(BodyLayout(codec, shapes).nbytes)
        return cls(tuple(parts))

    def messages(self, stage: int, worker: int) -> list[int]:
        """Bytes that a worker sends each of the others: their parts of its own, then its part of the average, then its vote."""
        others = [part for rank, part in enumerate(self.parts) if rank != worker]
        if stage == 0:
            return [HEADER_BYTES + header_bytes(True) + part for part in others]
        if stage == 1:
            return [HEADER_BYTES + header_bytes(False) + self.parts[worker]] * len(others)
        return [HEADER_BYTES + 1] * len(others)

    @property
    def sent(self) -> float:
        """Bytes that a worker sends, the mean over the workers: 2 (K - 1) / K q, frames and all."""
        workers = range(len(self.parts))
        return sum(sum(self.messages(stage, worker)) for stage in range(STAGES) for worker in workers) / len(workers)

    def seconds(self, link: Link) -> float:
        """Of the transfer, each stage as long as its slowest worker."""
        workers = range(len(self.parts))
        return sum(max(link.stage(self.messages(stage, worker)) for worker in workers) for stage in range(STAGES))


@dataclass(frozen=True)
class Predicted:
    """seconds: of all steps and all waiting. exposed: of these, what was waited. exchanges: that took place, by fragment."""

    seconds: float
    exposed: float
    exchanges: tuple[int, ...]


FIRST_BUCKET = 2**20
"""Bytes of gradients that DDP sends first, by default; the next buckets have 25 MB."""

BACKWARD = 2 / 3
"""The share of a step's operations that the backward pass is."""


def beside_backward(payload: float, step_seconds: float, transfer: float) -> float:
    """Seconds of a step's `transfer` of `payload` bytes that pass while gradients are still worked out: those of the first bucket,
    but no longer than the rest of the backward pass takes.

    >>> beside_backward(4 * 2**20, 0.6, 0.2)
    0.05
    >>> round(beside_backward(4 * 2**20, 0.6, 20.0), 6)
    0.3
    """
    first = min(1.0, FIRST_BUCKET / payload)
    return min(first * transfer, (1 - first) * BACKWARD * step_seconds)


def data_parallel(steps: int, step_seconds: float, transfer: float, beside: float = 0.0) -> Predicted:
    """Every step waits for its all-reduce, but for what goes `beside` it.

    >>> data_parallel(10, 0.5, 0.25)
    Predicted(seconds=7.5, exposed=2.5, exchanges=(10,))
    """
    exposed = steps * (transfer - beside)
    return Predicted(steps * step_seconds + exposed, exposed, (steps,))


def outer_loop(
    steps: int, step_seconds: float, transfers: Sequence[float], *, every: int, offsets: Sequence[int], overlap: int = 0
) -> Predicted:
    """Fragment p is exchanged after the steps t with (t - offsets[p]) mod every = 0; `overlap` steps later training waits
    until it is there. The link carries one exchange after another. At the end the fragments that have moved since are
    exchanged, with nothing to hide behind. transfers: seconds, by fragment.

    With no overlap each of the steps / every exchanges is exposed whole:

    >>> outer_loop(60, 0.5, [2.0], every=30, offsets=[0])
    Predicted(seconds=34.0, exposed=4.0, exchanges=(2,))

    With one, what is longer than its steps: 2 - 3 x 0.5 = 0.5, and at the end all 2:

    >>> outer_loop(60, 0.5, [2.0], every=30, offsets=[0], overlap=3)
    Predicted(seconds=32.5, exposed=2.5, exchanges=(2,))

    Three fragments that are hidden whole, save the last one and the two that have moved since they were exchanged:

    >>> outer_loop(60, 0.5, [1.0] * 3, every=30, offsets=[10, 20, 0], overlap=3)
    Predicted(seconds=33.0, exposed=3.0, exchanges=(3, 3, 2))
    """
    now = free = waited = 0.0
    under_way: list[tuple[int, float]] = []  # (step at which it is merged, when it is there)
    exchanged, counts = [0] * len(offsets), [0] * len(offsets)

    def wait(until: float) -> None:
        nonlocal now, waited
        waited += max(0.0, until - now)
        now = max(now, until)

    for step in range(1, steps + 1):
        now += step_seconds
        for fragment, offset in enumerate(offsets):
            if (step - offset) % every == 0:
                free = max(free, now) + transfers[fragment]
                under_way.append((step + overlap, free))
                exchanged[fragment] = step
                counts[fragment] += 1
        while under_way and under_way[0][0] <= step:
            wait(under_way.pop(0)[1])
    for _, there in under_way:
        wait(there)
    for fragment, step in enumerate(exchanged):
        if step != steps:
            wait(now + transfers[fragment])
            counts[fragment] += 1
    return Predicted(now, waited, tuple(counts))


def peak_rate(times: Sequence[float], sent: Sequence[float], window: float) -> float:
    """The most bytes a second over any stretch of `window` seconds that begins with a sample. sent: counted up to each time.

    Between samples bytes are taken to flow evenly; a record shorter than the window gives its mean over the window.

    >>> peak_rate([0, 1, 2, 3, 4], [0, 0, 600, 600, 600], 2)
    300.0
    >>> peak_rate([0, 1, 2, 3, 4], [0, 100, 200, 300, 400], 2)
    100.0
    """

    def at(moment: float) -> float:
        after = bisect_left(times, moment)
        if after >= len(times):
            return sent[-1]
        if after == 0:
            return sent[0]
        share = (moment - times[after - 1]) / (times[after] - times[after - 1])
        return sent[after - 1] + share * (sent[after] - sent[after - 1])

    return max((at(time + window) - total) / window for time, total in zip(times, sent, strict=True))


def largest_share(fragments: Sequence[Sequence[Named]]) -> float:
    """Of the parameters, that of the largest fragment: what a peak can fall to.

    >>> layer = nn.Linear(3, 1)
    >>> largest_share([list(layer.named_parameters())[:1], list(layer.named_parameters())[1:]])
    0.75
    """
    sizes = [sum(parameter.numel() for _, parameter in fragment) for fragment in fragments]
    return max(sizes) / sum(sizes)


def parameters(model: nn.Module) -> int:
    """Numbers that are trained.

    >>> parameters(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
