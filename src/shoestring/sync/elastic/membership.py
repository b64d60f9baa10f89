"""The members of a round, and the state that it goes on from."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Membership:
    """The members of a round, as one of them sees it.

    rank: this worker.
    size: how many there are.
    ids: the names of all, by rank.
    healed: whether this worker's state was replaced as the round was opened. What it had done since its last round is then
    lost, and it has nothing to contribute.
    fresh: the ranks of all that were healed.
    step: rounds committed before this one.
    waited: seconds until the quorum was there.
    healing: seconds that the transfer of the state took.
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
class QuorumRequest:
    """What a worker tells of itself when it asks for a quorum.

    replica: its name and a random suffix, new whenever its process is.
    address: where others fetch its state.
    step: rounds that its state has applied.
    lineage: a hash over these rounds.
    mesh: the connections that it has, '' for none.
    """

    replica: str
    address: str
    step: int
    lineage: str
    mesh: str


def run_state(members: Sequence[QuorumRequest]) -> tuple[int, str]:
    """The (step, lineage) that a round goes on from: the highest step; there, what most have; of equals, the first by rank."""
    highest = max(member.step for member in members)
    held = Counter(member.lineage for member in members if member.step == highest)
    most = max(held.values())
    return highest, next(m.lineage for m in members if m.step == highest and held[m.lineage] == most)
