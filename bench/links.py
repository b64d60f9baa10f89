"""Workers on links of their own, on one machine: network namespaces, each with a veth pair into one bridge.

Each end of a pair is shaped by `tbf` to the same rate: the worker's end by what leaves it, the bridge's end by what goes
to it. With a delay the bridge is delaying_switch.py instead. `with links(4) as net:` makes all of it and takes it away
again, also after a failure, Ctrl-C or SIGTERM; what a killed process has left behind is cleared by the next one.

It takes iproute2 and the right to make namespaces: root's, or `in_own_namespace`, which asks the kernel for a user
namespace that has it. There is no way round by a proxy: gloo picks its own ports and connects workers directly.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from delaying_switch import without_offload
from link_counters import Counters, read_counters

from shoestring.errors import ShoestringError, UsageError

INTERFACE = "link0"
"""The name that each worker's end has, in its namespace."""

PORT = 29400
QUEUE_SECONDS = 0.5
"""The most that waits at a shaped end, as time at its rate; what comes then is lost, and TCP sends it again."""

_PREFIX, _SHORT = "slow-link", "sl"
_GUARD = "SLOW_LINK_OWN_NAMESPACE"


class NoLinks(UsageError):
    """This machine does not let this process make links."""


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ShoestringError(f"{' '.join(words)}: {done.stderr.strip() or f'status {done.returncode}'}")
    return done.stdout


def in_own_namespace(command: Sequence[str]) -> None:
    """Where this process is not root: go on as `command` in a user namespace in which it is. Does not return then.

    Raises: NoLinks where the machine allows neither, or lacks iproute2.
    """
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            raise NoLinks(f"'{program}' is not installed: links between workers are made with iproute2")
    if os.geteuid() == 0:
        return
    apart = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    # ip keeps its namespaces under /run, which is not this user's, and /sys shows the links of another namespace
    lead_in = ["sh", "-c", 'mount -t tmpfs none /run && mount -t sysfs none /sys && exec "$@"', "sh"]
    allowed = not os.environ.get(_GUARD) and shutil.which("unshare") is not None
    if not allowed or subprocess.run([*apart, *lead_in, "true"], capture_output=True, check=False).returncode:
        raise NoLinks(
            "no right to make network namespaces: run this as root, or where users may have namespaces of their own"
        )
    os.environ[_GUARD] = "1"
    os.execvp(apart[0], [*apart, *lead_in, *command])


@contextlib.contextmanager
def _ended_by_signal() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that what it has made is taken away."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Links:
    """`workers` namespaces on one switch; `links` makes and ends it."""

    def __init__(self, workers: int, delay: float = 0.0) -> None:
        self.workers, self.delay = workers, delay
        own = f"{os.getpid():x}"
        self.bridge = f"{_SHORT}{own}b"
        self.namespaces = [f"{_PREFIX}-{own}-{rank}" for rank in range(workers)]
        self.ends = [f"{_SHORT}{own}w{rank}" for rank in range(workers)]
        self.addresses = [f"10.77.0.{rank + 1}" for rank in range(workers)]
        self.processes: list[subprocess.Popen[Any]] = []

    def make(self) -> None:
        if not self.delay:
            _run("ip", "link", "add", self.bridge, "type", "bridge", "stp_state", "0", "mcast_snooping", "0")
            _run("ip", "link", "set", self.bridge, "addrgenmode", "none", "up")
        for namespace, end, address in zip(self.namespaces, self.ends, self.addresses, strict=True):
            inner = f"{end}i"
            _run("ip", "netns", "add", namespace)
            _run("ip", "link", "add", end, "type", "veth", "peer", "name", inner)
            if self.delay:
                without_offload(inner)
            else:
                _run("ip", "link", "set", end, "master", self.bridge)
            _run("ip", "link", "set", inner, "netns", namespace, "name", INTERFACE)
            # without addresses of its own making the kernel says nothing on the links by itself
            _run("ip", "link", "set", end, "addrgenmode", "none", "up")
            inside = ("ip", "-n", namespace)
            _run(*inside, "link", "set", "lo", "up")
            _run(*inside, "address", "add", f"{address}/24", "dev", INTERFACE)
            _run(*inside, "link", "set", INTERFACE, "addrgenmode", "none", "up")
        if self.delay:
            switch = [sys.executable, str(Path(__file__).with_name("delaying_switch.py")), f"{self.delay}", *self.ends]
            self.processes.append(subprocess.Popen(switch, stdout=subprocess.PIPE, start_new_session=True))
            if self.processes[0].stdout is None or not self.processes[0].stdout.readline():
                raise ShoestringError("the delaying switch did not start")

    def shape(self, rate: float | None) -> None:
        """Let each link carry `rate` bits a second each way; None: as fast as the machine can."""
        ends = [("tc", "-n", namespace) for namespace in self.namespaces] + [("tc",)] * self.workers
        for tc, device in zip(ends, [INTERFACE] * self.workers + self.ends, strict=True):
            if rate is None:
                if '"tbf"' in _run(*tc, "-j", "qdisc", "show", "dev", device):
                    _run(*tc, "qdisc", "del", "dev", device, "root")
                continue
            # what may pass at once: a few packets, and at high rates what comes between two looks at the clock
            burst = max(5 * 1514, int(rate / 8 * 0.002))
            limit = max(burst, int(rate / 8 * QUEUE_SECONDS), 64 * 1024)
            words = ["rate", f"{rate:.0f}bit", "burst", str(burst), "limit", str(limit)]
            _run(*tc, "qdisc", "replace", "dev", device, "root", "tbf", *words)

    def start(
        self, rank: int, command: Sequence[str], environment: Mapping[str, str], output: Path
    ) -> subprocess.Popen[Any]:
        """A worker's process in its namespace, which finds itself as under torchrun; all it writes goes to `output`."""
        own = {
            "RANK": rank,
            "LOCAL_RANK": 0,
            "WORLD_SIZE": self.workers,
            "MASTER_ADDR": self.addresses[0],
            "MASTER_PORT": PORT,
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "OMP_NUM_THREADS": 1,
        }
        words = {name: str(value) for name, value in own.items()}
        with open(output, "wb") as file:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespaces[rank], *command],
                env={**os.environ, **words, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def counters(self) -> list[Counters]:
        """Of each worker's link, from this side of it."""
        return [read_counters(end, other_end=True) for end in self.ends]

    def end(self) -> None:
        """End the processes that are left and take everything away."""
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        _remove(self.namespaces, [*self.ends, self.bridge])


def _remove(namespaces: Sequence[str], devices: Sequence[str]) -> None:
    for device in devices:  # with its end here, a pair is gone
        subprocess.run(["ip", "link", "del", device], capture_output=True, check=False)
    for namespace in namespaces:
        subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def clear_leftovers() -> None:
    """Take away what processes that are gone have left."""
    listed = json.loads(_run("ip", "-j", "netns", "list") or "[]")
    for name in {entry["name"] for entry in listed if entry["name"].startswith(f"{_PREFIX}-")}:
        owner, rank = name.removeprefix(f"{_PREFIX}-").split("-")
        if not Path("/proc", str(int(owner, 16))).exists():
            _remove([name], [f"{_SHORT}{owner}w{rank}", f"{_SHORT}{owner}b"])


@contextlib.contextmanager
def links(workers: int, delay: float = 0.0) -> Iterator[Links]:
    """Namespaces for as many workers, unshaped. delay: seconds from one worker to another.

    Raises: NoLinks where the machine does not allow it; ShoestringError where the making fails otherwise.
    """
    net = Links(workers, delay)
    with _ended_by_signal():
        try:
            try:
                clear_leftovers()
                net.make()
            except ShoestringError as error:
                if "Operation not permitted" in str(error) or "Permission denied" in str(error):
                    raise NoLinks(f"no right to make network namespaces ({error}): run this as root") from None
                raise
            yield net
        finally:
            net.end()
