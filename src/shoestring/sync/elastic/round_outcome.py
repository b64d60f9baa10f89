"""The outcome of a round: one for all its members, whichever of them dies, freezes or is cut off meanwhile."""

import logging
import time

from torch.distributed import TCPStore

from shoestring.errors import first_line
from shoestring.sync.rendezvous.store import StoreLink

log = logging.getLogger(__name__)

_COMMIT, _ABORT = b"commit", b"abort"
_POLL, _LONGEST_POLL = 0.005, 0.1


class RoundOutcomes:
    """Votes on rounds, and reads their outcomes, through a store that all workers reach.

    An outcome is written once, by whoever comes first. A worker that sees that all have voted yes writes 'commit'. A worker
    that votes no, or has waited long enough for the others, writes 'abort'. The store compares and sets in one operation, so
    there is never a second outcome. A worker that cannot learn it must not apply the round. A round leaves some 100 bytes a
    worker in the store.

    address: of the store, as this process sees it.
    timeout: seconds to wait for the other votes.
    """

    def __init__(self, address: tuple[str, int], *, timeout: float) -> None:
        self._link, self._timeout = StoreLink(address, timeout=timeout), timeout

    def decide(self, question: str, yes: bool, rank: int, voters: int) -> bool | None:
        """Vote, and wait for the outcome: whether the round is committed; None where the store cannot be reached.

        question: the round's name, the same for all voters.
        yes: this worker's vote.
        rank: of this worker among the voters.
        voters: how many there are.
        """
        for attempt in ("first", "last"):
            try:
                return self._vote(self._link.store(), question, yes, rank, voters) == _COMMIT
            except (RuntimeError, OSError) as error:
                # to vote twice the same does no harm, and the connection may only have grown old
                self._link.drop()
                if attempt == "last":
                    log.warning("the outcome of a round is not known here, so it is not applied: %s", first_line(error))
        return None

    def _vote(self, store: TCPStore, question: str, yes: bool, rank: int, voters: int) -> bytes:
        outcome = f"{question}/outcome"
        if not yes:
            return store.compare_set(outcome, "", _ABORT.decode())
        store.set(f"{question}/yes/{rank}", "")
        ayes = [f"{question}/yes/{each}" for each in range(voters)]
        deadline = time.monotonic() + self._timeout
        poll = _POLL
        while True:
            if store.check(ayes):
                return store.compare_set(outcome, "", _COMMIT.decode())
            if store.check([outcome]):
                return store.get(outcome)
            if time.monotonic() > deadline:
                return store.compare_set(outcome, "", _ABORT.decode())
            time.sleep(poll)
            poll = min(2 * poll, _LONGEST_POLL)
