"""The transport of workers that come and go: torchft's lighthouse says who takes part in a round, gloo carries it.

Of torchft (0.2.0) it uses the lighthouse, for quorums and heartbeats, and `ProcessGroupGloo`, which can be set up again with
other members. It does not use torchft's `Manager`, for four reasons. The `Manager` votes among the processes of one replica
only, so one worker may apply a round and another not. It recognises a worker that is behind by its number of steps, so two
histories of one length count as the same. It opens a service on all interfaces by which anyone can end the process. It
unpickles what it loads to heal. Instead:

- A worker's state is named by (step, lineage): rounds committed, and a hash over the first state and these rounds. The run's
  state is that of the highest step; there, the one that most have. Workers with another state fetch it before the round.
- Each round has one outcome for all (`round_outcome`). A worker that does not learn it keeps its state, is behind, and heals.
"""

import hashlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from torch import Tensor

from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.elastic.healing import Healing, State, pack
from shoestring.sync.elastic.lighthouse import coordination
from shoestring.sync.elastic.membership import Membership, QuorumRequest, run_state
from shoestring.sync.elastic.mesh import Mesh
from shoestring.sync.elastic.round_outcome import RoundOutcomes
from shoestring.sync.rendezvous.admission import RunFingerprint
from shoestring.sync.transport.base import PeerLost
from shoestring.sync.transport.frame import derive_key
from shoestring.sync.transport.queued import Queued

log = logging.getLogger(__name__)

_PAUSE = 0.1


class FaultTolerantTransport:
    """One worker of a run whose workers may die, freeze, join late and come back. It implements `Transport`.

    A round is `open_round`, any number of exchanges, `close_round`; rank and size do not change in between. An exchange
    that fails raises PeerLost, and so does every later one of that round. Close it with False and open the next: its members
    are the survivors.

    identity: the name of this worker, the same whenever it comes back.
    lighthouse, store: their addresses as this process sees them (`ServiceTunnel`, or `Lighthouse` itself).
    token: the run's; it seals all frames.
    fingerprint: of the run.
    save: gives the state that all workers share, as the last committed round left it. It is called within `open_round`, and
    here.
    load: replaces that state. It is called within `open_round` alone.
    step, lineage: of the state that the worker begins with (the attributes of these names, from its checkpoint). Without a
    lineage it is the state's own hash.
    host: the address by which the other workers reach this machine, for healing. gloo chooses its own by the machine's name,
    or by GLOO_SOCKET_IFNAME.
    timeout: seconds that an exchange, a vote, a transfer of the state and the setting up of connections may each take.
    patience: seconds that `open_round` goes on trying.
    heartbeat: seconds between heartbeats.
    limit: the most bytes of one message.

    Raises: UsageError without a token or for an identity with a colon; ShoestringError where no lighthouse answers.
    """

    def __init__(
        self,
        identity: str,
        *,
        lighthouse: tuple[str, int],
        store: tuple[str, int],
        token: str,
        fingerprint: RunFingerprint,
        save: Callable[[], State],
        load: Callable[[dict[str, Tensor], dict[str, Any]], None],
        step: int = 0,
        lineage: str | None = None,
        host: str = "127.0.0.1",
        timeout: float = 60.0,
        patience: float = 600.0,
        heartbeat: float = 0.25,
        limit: int = 2**30,
    ) -> None:
        if not identity or ":" in identity:
            raise UsageError(f"'{identity}' cannot name a worker")
        client = coordination().LighthouseClient
        from torchft.process_group import ProcessGroupGloo  # after `coordination`, which sets the level of its log

        self.step = step
        self.lineage = lineage or hashlib.blake2b(pack(save()).numpy().data, digest_size=16).hexdigest()
        self._save, self._load, self._store = save, load, store
        self._timeout, self._patience = timeout, patience
        # a worker that comes back has a new name at the lighthouse, which may still count the dead one as alive
        self._replica = f"{identity}:{uuid.uuid4().hex[:8]}"
        self._round = ""
        self._healing = Healing(host, token=token, fingerprint=fingerprint)
        try:
            self._lighthouse = client("http://{}:{}".format(*lighthouse), timedelta(seconds=min(timeout, 10.0)))
        except RuntimeError as error:
            self._healing.close()
            raise ShoestringError(f"no lighthouse answers at {lighthouse[0]}:{lighthouse[1]}: {error}") from None
        group = ProcessGroupGloo(timedelta(seconds=timeout))
        self._mesh = Mesh(group, key=derive_key(token), timeout=timeout, limit=limit)
        self.traffic = self._mesh.traffic
        self._outcomes = RoundOutcomes(store, timeout=timeout)
        self._closed = threading.Event()
        self._alive = True
        self._send_heartbeat(heartbeat)  # first of all, as the others wait for every worker that is known to be alive
        self._heartbeats = threading.Thread(
            target=self._beat, args=(heartbeat,), name="shoestring-heartbeat", daemon=True
        )
        self._heartbeats.start()

    @property
    def rank(self) -> int:
        """This worker's place in the round that is open, or was last."""
        return self._mesh.rank

    @property
    def size(self) -> int:
        """How many take part in that round."""
        return self._mesh.size

    def open_round(self) -> Membership:
        """Wait for the others, heal or send the state to those that need it, and connect.

        A round that is still open is closed with False.

        Raises: ShoestringError where no round could be opened within `patience` seconds; what `save` and `load` raise.
        """
        if self._round:
            self.close_round(False)
        began = time.monotonic()
        reason = "nothing was tried"
        while (left := self._patience - (time.monotonic() - began)) > 0:
            try:
                return self._open(left)
            except PeerLost as error:
                # the lighthouse or a peer was lost meanwhile: the next quorum is without it, or it is back
                reason = str(error)
                log.info("a round was not opened, trying again: %s", reason)
                self._mesh.give_up()
                time.sleep(_PAUSE)
        raise ShoestringError(f"no round could be opened within {self._patience:g} s: {reason}")

    def exchange(self, messages: Sequence[Tensor], sizes: Sequence[int] | None, *, tag: int) -> Queued:
        """See `Transport.exchange`. A message that fails its check, or has another size, is None."""
        return self._mesh.exchange(messages, sizes, tag=tag)

    def close_round(self, ok: bool) -> bool:
        """Vote, and return the outcome for all: whether this round is to be applied.

        It is False too where the outcome cannot be learnt: if the others applied the round, the next opening heals this worker.

        ok: this worker's vote.
        """
        question, self._round = self._round, ""
        if not question:
            return False
        outcome: bool | None = ok
        if self.size > 1:
            outcome = self._outcomes.decide(question, ok, self.rank, self.size)
        self._healing.withdraw()
        if outcome:
            self.step += 1
            self.lineage = hashlib.blake2b(f"{self.lineage} {question}".encode(), digest_size=16).hexdigest()
            return True
        self._mesh.give_up()
        return False

    def close(self) -> None:
        """Leave. The others miss this worker once its last heartbeat is too old."""
        self._closed.set()
        self._mesh.close()
        self._healing.close()
        self._heartbeats.join(timeout=1)

    def _beat(self, interval: float) -> None:
        while not self._closed.wait(interval):
            self._send_heartbeat(interval)

    def _send_heartbeat(self, interval: float) -> None:
        try:
            self._lighthouse.heartbeat(self._replica, timedelta(seconds=max(1.0, 4 * interval)))
            self._alive = True
        except (TimeoutError, RuntimeError) as error:
            if self._alive:
                log.warning("no heartbeat reaches the lighthouse: %s", error)
            self._alive = False

    def _quorum(self, seconds: float) -> Any:
        try:
            return self._lighthouse.quorum(
                replica_id=self._replica,
                timeout=timedelta(seconds=seconds),
                address=self._healing.address,
                step=self.step,
                world_size=1,
                data={"lineage": self.lineage, "mesh": self._mesh.name},
            )
        except TimeoutError:
            raise PeerLost(-1, "too few workers are ready") from None
        except RuntimeError as error:
            raise PeerLost(-1, f"the lighthouse does not answer ({error})") from None

    def _open(self, left: float) -> Membership:
        asked = time.monotonic()
        quorum = self._quorum(left)
        waited = time.monotonic() - asked
        found = sorted(quorum.participants, key=lambda each: each.replica_id)
        members = [_member(each) for each in found]
        # a quorum of the same members has the same id: its time tells two of them apart
        name = f"{quorum.quorum_id}.{quorum.created.seconds}.{quorum.created.nanos}"
        rank = [member.replica for member in members].index(self._replica)
        goal = run_state(members)
        fresh = tuple(r for r, each in enumerate(members) if (each.step, each.lineage) != goal)
        sources = [r for r in range(len(members)) if r not in fresh]
        assigned = {r: sources[place % len(sources)] for place, r in enumerate(fresh)}
        if rank in assigned.values():
            self._offer()
        began = time.monotonic()
        if rank in fresh:
            self._heal(rank, members[assigned[rank]].address, goal)
        healing = time.monotonic() - began
        # kept where all have the same connections: then nobody lost any, and nobody joined
        if len(members) != self._mesh.size or any(each.mesh != self._mesh.name or not each.mesh for each in members):
            self._mesh.connect(name, store=self._store, rank=rank, size=len(members))
        self._round = name
        return Membership(
            rank=rank,
            size=len(members),
            ids=tuple(member.replica.partition(":")[0] for member in members),
            healed=rank in fresh,
            fresh=fresh,
            step=self.step,
            waited=waited,
            healing=healing,
        )

    def _offer(self) -> None:
        tensors, values = self._save()
        state = (tensors, {"lineage": self.lineage, "state": dict(values)})
        self._healing.offer(self.step, state, timeout=self._timeout)

    def _heal(self, rank: int, source: str, goal: tuple[int, str]) -> None:
        step, lineage = goal
        try:
            tensors, values = self._healing.fetch(source, step, rank=rank, timeout=self._timeout)
        except ShoestringError as error:
            raise PeerLost(-1, f"no state came: {error}") from None
        if values.get("lineage") != lineage or not isinstance(values.get("state"), dict):
            raise PeerLost(-1, "the state that came is not of this run's rounds")
        self._load(tensors, values["state"])
        self.step, self.lineage = step, lineage


def _member(found: Any) -> QuorumRequest:
    data = found.data if isinstance(found.data, dict) else {}
    return QuorumRequest(
        found.replica_id, found.address, found.step, str(data.get("lineage", "")), str(data.get("mesh", ""))
    )
