"""How a round ended: one verdict for all who took part, whoever of them dies, freezes or is cut off meanwhile."""

import logging
import time

from torch.distributed import TCPStore

from shoestring.errors import first_line
from shoestring.sync.store import StoreLink

log = logging.getLogger(__name__)

_COMMIT, _ABORT = b"commit", b"abort"
_LOOK, _LONGEST_LOOK = 0.005, 0.1


class Verdicts:
    """Asks for and gives verdicts through a store that all workers reach.

    A round's verdict is written once, by whoever comes first: 'commit' by a worker that sees that all have said yes, 'abort' by
    any that says no or has waited long enough for the others. The store compares and sets in one go, so there is never a
    second verdict. A worker that cannot learn it must not apply the round. A round leaves some 100 bytes a worker there.

    address: of the store, as this process sees it. timeout: seconds to wait for the other votes.
    """

    def __init__(self, address: tuple[str, int], *, timeout: float) -> None:
        self._link, self._timeout = StoreLink(address, timeout=timeout), timeout

    def settle(self, question: str, yes: bool, rank: int, voters: int) -> bool | None:
        """Vote, as the rank-th of all voters, on a question that they know by the same text; wait for the verdict.

        None: the store cannot be reached, so that the verdict is not known here.
        """
        for attempt in ("first", "last"):
            try:
                return self._vote(self._link.store(), question, yes, rank, voters) == _COMMIT
            except (RuntimeError, OSError) as error:
                # to say the same twice does no harm, and the connection may only have grown old
                self._link.drop()
                if attempt == "last":
                    log.warning(
                        "the verdict on a round could not be learnt, it is not applied here: %s", first_line(error)
                    )
        return None

    def _vote(self, store: TCPStore, question: str, yes: bool, rank: int, voters: int) -> bytes:
        verdict = f"{question}/verdict"
        if not yes:
            return store.compare_set(verdict, "", _ABORT.decode())
        store.set(f"{question}/yes/{rank}", "")
        ayes = [f"{question}/yes/{each}" for each in range(voters)]
        deadline = time.monotonic() + self._timeout
        look = _LOOK
        while True:
            if store.check(ayes):
                return store.compare_set(verdict, "", _COMMIT.decode())
            if store.check([verdict]):
                return store.get(verdict)
            if time.monotonic() > deadline:
                return store.compare_set(verdict, "", _ABORT.decode())
            time.sleep(look)
            look = min(2 * look, _LONGEST_LOOK)
