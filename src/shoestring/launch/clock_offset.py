"""How far the clocks of the processes of a run are apart, so that what each notes can be laid side by side."""

import time
from collections.abc import Sequence
from pathlib import Path

from shoestring.sync.rendezvous.all_gather import all_gather
from shoestring.sync.transport.base import Transport

FIRST_NUMBER = 100
"""All-gathers of a run are numbered; those here from this on."""
ROUNDS = 4
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def boot() -> str:
    """What all processes of one running machine have in common, and with it the monotonic clock; '' where it is not told."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


def measured(transport: Transport) -> tuple[float, float]:
    """(seconds that this process's monotonic clock is ahead of rank 0's, the most by which that is wrong).

    Processes of one machine have one clock: (0, 0). Else each sends its reading when a round begins, and reads again when those of
    the others are there. A message comes after it was sent, so each round bounds the offset from both sides; of all rounds the
    tightest bounds count. All processes call it together.
    """
    sent, arrived = [], []
    for number in range(ROUNDS):
        sent.append(time.monotonic())
        last = all_gather(transport, [boot(), sent[-1]], number=FIRST_NUMBER + number)
        arrived.append(time.monotonic())
    each = all_gather(transport, [sent, arrived], number=FIRST_NUMBER + ROUNDS)
    if last[0][0] and last[0][0] == last[transport.rank][0]:
        return 0.0, 0.0
    return between(each[0][0], each[0][1], sent, arrived)


def between(
    their_sent: Sequence[float], their_arrived: Sequence[float], sent: Sequence[float], arrived: Sequence[float]
) -> tuple[float, float]:
    """(offset of this clock from theirs, its largest error), from the readings of both in the same rounds, seconds."""
    high = min(mine - theirs for mine, theirs in zip(arrived, their_sent, strict=True))
    low = max(mine - theirs for mine, theirs in zip(sent, their_arrived, strict=True))
    return (high + low) / 2, max(high - low, 0.0) / 2
