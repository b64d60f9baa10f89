"""Who takes part in a round, and whose state it goes on from."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Membership:
    """Who takes part in a round.

    rank, size: this worker, and how many. ids: the names of all, by rank. healed: whether this worker's state was replaced
    as the round was opened: what it had done since its last round is lost, and it has nothing to contribute. fresh: the
    ranks of all that were healed. step: rounds committed before this one. waited: seconds until the quorum was there.
    healing: seconds that the state took to come.
    """

    rank: int
    size: int
    ids: tuple[str, ...]
    healed: bool
    fresh: tuple[int, ...]
    step: int
    waited: float
    healing: float


@dataclass(frozen=True)
class Member:
    """What a worker says of itself when it asks for a quorum."""

    replica: str
    address: str
    step: int
    lineage: str
    mesh: str


def run_state(members: Sequence[Member]) -> tuple[int, str]:
    """The (step, lineage) that a round goes on from: of the highest step, what most have; of these, the first by rank."""
    highest = max(member.step for member in members)
    held = Counter(member.lineage for member in members if member.step == highest)
    most = max(held.values())
    return highest, next(m.lineage for m in members if m.step == highest and held[m.lineage] == most)
