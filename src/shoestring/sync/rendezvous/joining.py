"""How a worker joins its run and leaves it: the same under `processes.launch` as under torchrun."""

import ipaddress
import os
import socket
import time
from datetime import timedelta

import psutil
import torch.distributed as dist

from shoestring.errors import ShoestringError, UsageError, first_line
from shoestring.sync.rendezvous.admission import RunFingerprint, admit
from shoestring.sync.transport.base import Transport
from shoestring.sync.transport.distributed import DistributedTransport
from shoestring.sync.transport.frame import TOKEN, derive_key
from shoestring.sync.transport.heartbeat import TIMEOUT, Heartbeat
from shoestring.sync.transport.local import LocalGroup

PLACE = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The environment variables by which `launch` and torchrun tell a worker its place."""


def _variable(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise UsageError(f"{name} is not in the environment: a worker is started by --workers, or by torchrun")
    return value


def _whole_number(name: str) -> int:
    text = _variable(name)
    if not text.isdigit():
        raise UsageError(f"{name} is '{text}' in the environment: a whole number is needed")
    return int(text)


def world_size() -> int:
    """How many workers were started, this one included. Raises: UsageError where the environment does not say."""
    return _whole_number("WORLD_SIZE")


def _loopback_interface(address: str) -> str:
    """This machine's loopback interface if the address is there, or every address of a host's name; else ''."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(address, None)}
    except (OSError, UnicodeError):  # the second for what cannot be a name at all
        return ""
    if all(ipaddress.ip_address(each).is_loopback for each in found):
        for name, entries in psutil.net_if_addrs().items():
            if any(entry.address == "127.0.0.1" for entry in entries):
                return name
    return ""


def _await_answer(address: str, port: int, timeout: float) -> bool:
    """Whether something listens there within `timeout` seconds. torch would wait longer, and print a stack trace."""
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((address, port), timeout=max(end - time.monotonic(), 0.01)).close()
            return True
        except OSError:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)


def join(
    timeout: float,
    *,
    fingerprint: RunFingerprint | None = None,
    heartbeat_timeout: float = TIMEOUT,
    island: int | None = None,
) -> Transport:
    """Find the other workers, compare fingerprints with them, and connect. `leave` undoes it.

    The place of this worker is in the environment, under `launch` as under torchrun. A process that nobody started as one of
    several is a world of one: it gets the transport of a single worker.

    gloo is bound to the loopback interface where the master is there, unless $GLOO_SOCKET_IFNAME says otherwise. The token is
    $SHOESTRING_TOKEN. It may be empty among workers that meet on the loopback interface: frames then have a checksum alone,
    and anybody on the machine is admitted.

    timeout: seconds to wait for the others, and the most that the transport's exchanges may take.
    fingerprint: what must be alike (`admission.admit`); None for the program's version alone.
    heartbeat_timeout: seconds without a heartbeat until a worker counts as frozen (`Heartbeat`).
    island: torch's default group is of so many neighbours in rank, and not of all, whom the transport reaches; None: of all.

    Raises: UsageError where the environment gives this worker no place, where there is no token and other machines can reach
    the workers, and where workers differ; ShoestringError where some do not arrive, or cannot be reached.
    """
    if not any(os.environ.get(name) for name in PLACE):
        return _world_of_one(fingerprint)
    rank, size = _whole_number("RANK"), world_size()
    address, port = _variable("MASTER_ADDR"), _whole_number("MASTER_PORT")
    fingerprint = fingerprint or RunFingerprint(workers=size)
    if fingerprint.workers != size:
        raise UsageError(f"the run is of {fingerprint.workers} workers, and {size} were started")
    interface = _loopback_interface(address)
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    token = os.environ.get(TOKEN, "").strip()
    if not token and not (interface and os.environ["GLOO_SOCKET_IFNAME"] == interface):
        raise UsageError(
            f"{TOKEN} is empty, and other machines can reach the store of the workers: set it to one secret for all of them"
        )
    key = derive_key(token)
    held_by = None if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else 0
    store, own_store = _stores(address, port, held_by=held_by, rank=rank, timeout=timeout)
    # made before the others are admitted, so that all of them find its first heartbeat
    heartbeat = Heartbeat(own_store, rank=rank, size=size, timeout=heartbeat_timeout, holder=held_by)
    admit(fingerprint, store, rank=rank, key=key, timeout=timeout)
    heartbeat.start()
    try:
        group_store, wait = dist.PrefixStore("shoestring/group", store), timedelta(seconds=timeout)
        group = None
        if island is not None:
            group = dist.ProcessGroupGloo(dist.PrefixStore("shoestring/everybody", store), rank, size, wait)
            group_store = dist.PrefixStore(f"shoestring/island/{rank // island}", store)
        dist.init_process_group(
            "gloo", store=group_store, rank=rank % (island or size), world_size=island or size, timeout=wait
        )
        return DistributedTransport(group, key=key, timeout=timeout, heartbeat=heartbeat, store=store)
    except RuntimeError as error:
        heartbeat.close()
        raise ShoestringError(f"worker {rank} cannot connect to the others: {str(error).splitlines()[0]}") from error


def _stores(
    address: str, port: int, *, held_by: int | None, rank: int, timeout: float
) -> tuple[dist.TCPStore, dist.TCPStore]:
    """Two connections to the store that the workers share; a request that waits holds up its own connection alone.

    held_by: the rank of the worker whose process holds the store; None where what started the workers holds it.
    """
    if held_by != rank and not _await_answer(address, port, timeout):
        holder = "what started the workers" if held_by is None else f"worker {held_by}"
        raise ShoestringError(f"{holder} does not answer at {address}:{port} within {timeout:g} s")
    wait = timedelta(seconds=timeout)
    try:
        first = dist.TCPStore(
            address, port, is_master=held_by == rank, timeout=wait, wait_for_workers=False, multi_tenant=True
        )
        return first, dist.TCPStore(address, port, is_master=False, timeout=wait, wait_for_workers=False)
    except dist.DistError as error:
        reason = first_line(error)
        raise ShoestringError(f"no store at {address}:{port} that the workers can share: {reason}") from error


def _world_of_one(fingerprint: RunFingerprint | None) -> Transport:
    if fingerprint is not None and fingerprint.workers != 1:
        raise UsageError(f"the run is of {fingerprint.workers} workers, and this process was started alone")
    return LocalGroup(1).transports[0]


def leave(transport: Transport) -> None:
    """Close a transport that `join` gave, and the process group that it made."""
    transport.close()
    if isinstance(transport, DistributedTransport):
        dist.destroy_process_group()
