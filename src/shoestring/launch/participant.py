"""A worker that joins a run whose workers come and go."""

import contextlib
import datetime
import os
import re
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from shoestring import atomic
from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import cache_folder, probe
from shoestring.data.prepare import prepare
from shoestring.errors import UsageError
from shoestring.json_files import read_file
from shoestring.launch.crew import started
from shoestring.launch.host import address, require_torchft, run_fingerprint
from shoestring.launch.view import LogView, View
from shoestring.sync.elastic.fault_tolerant import FaultTolerantTransport
from shoestring.sync.elastic.run_status import RunStatus
from shoestring.sync.rendezvous.listener import ServiceTunnel
from shoestring.sync.transport.frame import TOKEN
from shoestring.train.allocator import keep_freed_memory
from shoestring.train.config import RunConfig
from shoestring.train.elastic.session import ROUNDS, ElasticSession
from shoestring.train.execution import keep_compiled_code
from shoestring.train.run_folder import RUN, RunFolder, environment
from shoestring.train.session import Outcome
from shoestring.train.starting import resolve
from shoestring.train.work_folder import LOCK

NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")


def _token() -> str:
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise UsageError(
            f"${TOKEN} is empty: put the run's token there, which is in the file 'token' of the run's folder"
        )
    return token


def _own_address(host: str, port: int) -> str:
    """This machine's address as that host sees it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as link:
        try:
            link.connect((host, port))  # sends nothing: it only looks which way it would go
        except OSError as error:
            raise UsageError(f"no way to {host}:{port}: {error.strerror or error}") from None
        return link.getsockname()[0]


def _bind_gloo(own: str) -> None:
    """Have gloo use the interface of this address; it would go by the machine's name, which may lead elsewhere."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == own for entry in entries):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _folder(out: Path | None) -> RunFolder:
    path = out or Path("runs") / datetime.datetime.now().strftime("worker-%Y-%m-%d-%H%M%S")
    path.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(path)
    left = {LOCK, *RUN.prepared, *RUN.outputs, ROUNDS}  # by a worker that was stopped before it had begun
    if not folder.begun and any(each.name not in left for each in path.iterdir()):
        raise UsageError(f"{path} exists and is not a worker's folder: name another with --out")
    return folder


def _name(folder: RunFolder, given: str | None) -> str:
    """This worker's name: the one given, the one it had, or a new one."""
    kept = folder.path / "name"
    had = (read_file(kept) or b"").decode(errors="replace").strip()
    name = given or had or f"guest-{secrets.token_hex(4)}"
    if not NAME.fullmatch(name):
        raise UsageError(f"'{name}' cannot name a worker: letters, digits, '-', '_' and '.' can, 40 of them at most")
    atomic.write_text(kept, name + "\n")
    return name


@dataclass(frozen=True)
class Left:
    """How a worker's part in a run ended.

    identity: its name in the run.
    outcome: how it ended, and what the run and this worker came to.
    """

    identity: str
    outcome: Outcome


def join(
    config: RunConfig,
    where: str,
    *,
    out: Path | None = None,
    name: str | None = None,
    companions: Sequence[str] = (),
    view: View | None = None,
) -> Left:
    """Join a run whose workers come and go, and train until it ends or this process is asked to stop.

    config: the run's, as its config.toml has it. The run's token is taken from the environment, $SHOESTRING_TOKEN.
    where: 'HOST:PORT' of the run, as it says at its start.
    out: this worker's folder; None: a new one in runs/.
    name: this worker's name in the run; None: the one it had, or one of its own.
    companions: names of the workers to wait for before the first step.
    view: what the run is shown to; None: Python's `logging`.
    Raises: UsageError, ShoestringError.
    """
    require_torchft()
    host, port = address(where)
    if config.transport != "torchft":
        raise UsageError(
            f"the recipe has transport = '{config.transport}': only a run with --transport torchft can be joined"
        )
    token, view = _token(), view or LogView()
    keep_freed_memory()
    keep_compiled_code(cache_folder())
    own = _own_address(host, port)
    _bind_gloo(own)
    began, machine = started(), probe()
    dataset = prepare(config.data, cache_folder())
    preparing = Ledger()
    config = resolve(config, dataset, machine, preparing)
    fingerprint = run_fingerprint(config, dataset)
    with contextlib.ExitStack() as stack:
        tunnel = stack.enter_context(ServiceTunnel(host, port, token, fingerprint))
        folder = _folder(out)
        stack.enter_context(folder.held())
        identity = _name(folder, name)
        if not folder.begun:
            dataset.tokenizer.save(folder.tokenizer)
            folder.write_json("environment.json", environment(machine))
            folder.write_config(config, dataset)
        elif run_fingerprint(folder.read_config(), dataset) != fingerprint:
            raise UsageError(f"{folder.path} is of another run: name another folder with --out")
        ledger = Ledger(folder.ledger, since=began)
        ledger.write("start")
        watch = stack.enter_context(view.watch(config, machine))
        link = partial(
            FaultTolerantTransport,
            identity,
            lighthouse=tunnel.lighthouse,
            store=tunnel.store,
            token=token,
            fingerprint=fingerprint,
            host=own,
            timeout=config.elastic.exchange,
            patience=config.elastic.patience,
            heartbeat=min(0.25, config.elastic.silence / 6),
        )
        session = ElasticSession(
            config,
            folder,
            ledger,
            dataset,
            watch.show,
            identity=identity,
            companions=companions,
            run_status=RunStatus(tunnel.store, timeout=config.elastic.exchange),
            link=link,
            since=began,
        )
        session.restore()
        outcome = session.run()
        ledger.close()
    return Left(identity, outcome)
