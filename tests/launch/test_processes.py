"""Teams of processes: started alike, ended together, and a worker's way in; none is ever left behind."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring import __version__
from shoestring.errors import ShoestringError, UsageError
from shoestring.launch import processes
from shoestring.launch.processes import StartedWorkers, WorkerFailed, available_cores, launch, share_of_cores
from shoestring.log_lines import held_back
from shoestring.sync.rendezvous.admission import RunFingerprint
from shoestring.sync.rendezvous.joining import PLACE, join, leave
from shoestring.sync.transport.frame import TOKEN

Start = Callable[..., StartedWorkers]


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """Starts workers that run a piece of Python each; ends them with the test."""
    teams = []

    def begin(code: str, workers: int = 3, **more: Any) -> StartedWorkers:
        program = f"import json, os, signal, sys, time\nrank = int(os.environ['RANK'])\n{code}"
        command = [sys.executable, "-I", "-S", "-c", program, str(tmp_path)]
        teams.append(launch(command, workers, outputs=tmp_path / "outputs", **more))
        return teams[-1]

    yield begin
    for team in teams:
        team.end()


def free_port() -> int:
    """A port that nobody listens on, and that the system gives to nobody who asks for any: other tests do, all the time."""
    with open("/proc/sys/net/ipv4/ip_local_port_range") as limits:
        first = int(limits.read().split()[0])
    for port in random.sample(range(first // 2, first), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # one of an orphan is for init to collect
    except psutil.NoSuchProcess:
        return False


def _gone(pids: list[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while any(_runs(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _wait_for(path: Path, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)


def test_each_worker_finds_its_place_and_the_token(start: Start, tmp_path: Path) -> None:
    code = """
cores = sorted(os.sched_getaffinity(0))
words = open("/proc/self/cmdline").read()
seen = {"environment": dict(os.environ), "cores": cores, "words": words}
open(sys.argv[1] + f"/{rank}.json", "w").write(json.dumps(seen))
"""
    mine = available_cores()
    team = start(code, 3, cores=mine[:2], environment={"MORE": "here"})
    assert team.wait() == 0
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    tokens = {one["environment"][TOKEN] for one in seen}
    assert len(tokens) == 1
    assert len(token := tokens.pop()) > 40
    for rank, one in enumerate(seen):
        found = one["environment"]
        assert (found["RANK"], found["LOCAL_RANK"], found["WORLD_SIZE"]) == (str(rank), str(rank), "3")
        assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("127.0.0.1", str(team.store.port))
        assert found["MORE"] == "here"
        assert found["OMP_NUM_THREADS"] == "1"
        assert one["cores"] == [mine[rank % len(mine[:2])]]
        assert token not in one["words"]


@given(st.integers(1, 40), st.lists(st.integers(0, 500), min_size=1, max_size=40, unique=True))
def test_cores_are_shared_out_near_equally(workers: int, cores: list[int]) -> None:
    shares = [share_of_cores(rank, workers, cores) for rank in range(workers)]
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    if len(cores) >= workers:
        assert [core for share in shares for core in share] == cores
    else:
        assert sizes == [1] * workers
        assert {core for share in shares for core in share} == set(cores)


def test_worker_0_is_heard_and_the_others_write_to_files(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    team = start("print('output of', rank); print('errors of', rank, file=sys.stderr)")
    assert team.wait() == 0
    output, errors = capfd.readouterr()
    assert (output, errors) == ("output of 0\n", "errors of 0\n")
    assert sorted(team.output_of(2).read_text().splitlines()) == ["errors of 2", "output of 2"]


def test_the_store_listens_on_the_loopback_interface_alone(start: Start) -> None:
    team = start("", 1)
    bound = {
        connection.laddr.ip
        for connection in psutil.Process().net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == team.store.port
    }
    assert bound == {"127.0.0.1"}


SLEEPERS = "if rank != 1: time.sleep(60)\n"


@pytest.mark.parametrize(
    ("end", "line", "status"),
    [
        ("print('first'); print('shoestring: no such corpus'); sys.exit(2)", "ended with status 2: no such corpus", 2),
        ("print('first', flush=True); os.kill(os.getpid(), 9)", "was ended by SIGKILL: first", 1),
        ("sys.exit(3)", "ended with status 3", 3),
    ],
)
def test_when_one_fails_the_others_are_ended_and_it_is_named(start: Start, end: str, line: str, status: int) -> None:
    began = time.monotonic()
    team = start(SLEEPERS + end)
    with pytest.raises(WorkerFailed) as failed, held_back("shoestring") as said:
        team.wait()
    assert str(failed.value) == f"worker 1 {line}"
    assert (failed.value.rank, failed.value.exit_status) == (1, status)
    assert said == (["worker 1 | first"] if status == 2 else [])
    assert time.monotonic() - began < 4
    assert _gone(team.pids, 1)


def test_one_that_will_not_end_is_ended_children_and_all(start: Start, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.4)
    code = """
if rank == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = os.fork()
    if child:
        open(sys.argv[1] + "/child", "w").write(str(child))
        os.rename(sys.argv[1] + "/child", sys.argv[1] + "/ready")
    time.sleep(60)
while not os.path.exists(sys.argv[1] + "/ready"):
    time.sleep(0.01)
sys.exit(1)
"""
    team = start(code, 2)
    with pytest.raises(WorkerFailed, match="worker 1 ended with status 1"):
        team.wait()
    assert _gone([*team.pids, int((tmp_path / "ready").read_text())], 1)


def test_a_command_that_cannot_be_run_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no program 'no-such-program' to start workers with"):
        launch(["no-such-program"], 2, outputs=tmp_path)
    for command, workers in ((["x"], 0), ([], 2)):
        with pytest.raises(UsageError, match="at least one worker"):
            launch(command, workers, outputs=tmp_path)


@pytest.mark.parametrize(("number", "polite"), [(signal.SIGTERM, True), (signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_is_handed_on_to_all_once(start: Start, tmp_path: Path, number: int, polite: bool) -> None:
    code = """
got = []
if POLITE:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda number, frame: got.append(number))
open(sys.argv[1] + f"/up-{rank}", "w")
end = time.monotonic() + 20
while not got and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.2)
open(sys.argv[1] + f"/got-{rank}", "w").write(json.dumps(got))
sys.exit(128 + got[0])
""".replace("POLITE", str(polite))
    team = start(code)

    def interrupt() -> None:
        for rank in range(3):
            _wait_for(tmp_path / f"up-{rank}")
        os.kill(os.getpid(), number)

    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    threading.Thread(target=interrupt).start()
    assert team.wait() == 128 + number
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    if polite:
        assert [json.loads((tmp_path / f"got-{rank}").read_text()) for rank in range(3)] == [[number]] * 3


def test_no_worker_and_no_zombie_is_left_by_a_caller_that_gives_up(start: Start) -> None:
    with pytest.raises(RuntimeError, match="changed my mind"), start("time.sleep(60)") as team:
        raise RuntimeError("changed my mind")
    assert not {child.pid for child in psutil.Process().children()} & set(team.pids)


def _parent(folder: str) -> None:
    command = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    team = launch(command, 3, outputs=Path(folder))
    Path(folder, "pids.part").write_text(json.dumps(team.pids))
    Path(folder, "pids.part").rename(Path(folder, "pids"))
    team.wait()


def test_workers_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = _forks().Process(target=_parent, args=(str(tmp_path),))
    parent.start()
    _wait_for(tmp_path / "pids", 60)
    pids = json.loads((tmp_path / "pids").read_text())
    time.sleep(0.2)
    assert [_runs(pid) for pid in pids] == [True] * 3
    parent.kill()
    parent.join()
    assert _gone(pids, 3)


def _forks() -> Any:
    """Processes that begin with torch imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "pytest", join.__module__])
    return context


def _join(changes: dict[str, Any], rank: int, path: str) -> None:
    """A worker that joins, exchanges its rank, and leaves; its line and its interface are written to `path`."""
    for name, value in changes["environment"].items():
        os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, str(value))
    fingerprint = RunFingerprint(**changes["fingerprint"]) if changes["fingerprint"] else None
    said: dict[str, Any] = {}
    try:
        Path(f"{path}.begun").touch()
        transport = join(20, fingerprint=fingerprint, heartbeat_timeout=changes.get("heartbeat_timeout", 5))
        if rank == changes.get("frozen"):
            os.kill(os.getpid(), signal.SIGSTOP)
        mine = torch.tensor([transport.rank], dtype=torch.uint8)
        found = transport.exchange([mine] * transport.size, [1] * transport.size, tag=0).result()
        said = {"found": [each.tolist() for each in found if each is not None], "size": transport.size}
        said["interface"] = os.environ.get("GLOO_SOCKET_IFNAME")
        leave(transport)
    except ShoestringError as error:
        said = {"line": str(error)}
        raise SystemExit(error.exit_status) from None
    finally:
        Path(path).write_text(json.dumps(said))


def _joined(
    tmp_path: Path, size: int, *, agent: bool = True, odd: dict[str, Any] | None = None, **last: Any
) -> tuple[list[dict[str, Any]], list[int | None]]:
    """What workers said and how they ended. `last`, `odd`: of the last one's fingerprint and environment."""
    store = processes.open_store()
    port = store.port if agent else free_port()
    workers = []
    for rank in range(size):
        environment = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, TOKEN: "ours"}
        environment["TORCHELASTIC_USE_AGENT_STORE"] = agent or None
        fingerprint = {"workers": size, "recipe": "aa11"}
        if rank == size - 1:
            environment |= odd or {}
            fingerprint |= last
        changes = {"environment": environment, "fingerprint": fingerprint}
        workers.append(_forks().Process(target=_join, args=(changes, rank, str(tmp_path / str(rank)))))
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    statuses = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    return [json.loads((tmp_path / str(rank)).read_text()) for rank in range(size)], statuses


@pytest.mark.parametrize("agent", [True, False])
def test_workers_join_whoever_holds_the_store(tmp_path: Path, agent: bool) -> None:
    said, statuses = _joined(tmp_path, 3, agent=agent)
    assert statuses == [0, 0, 0]
    assert said == [{"found": [[0], [1], [2]], "size": 3, "interface": "lo"}] * 3


@pytest.mark.parametrize(
    ("agent", "odd", "fingerprint", "line"),
    [
        (True, {TOKEN: "theirs"}, {}, "worker 2 does not know this run's token"),
        (True, {}, {"version": "9.9"}, f"worker 2 runs shoestring 9.9 and worker 0 runs {__version__}: "),
        (False, {}, {"recipe": "bb22"}, "worker 2 trains by another recipe than worker 0 (fingerprints bb22 and aa11)"),
    ],
)
def test_workers_that_differ_end_with_status_2_and_one_line(
    tmp_path: Path, agent: bool, odd: dict[str, Any], fingerprint: dict[str, Any], line: str
) -> None:
    said, statuses = _joined(tmp_path, 3, agent=agent, odd=odd, **fingerprint)
    assert statuses == [2, 2, 2], said
    assert len({one["line"] for one in said}) == 1
    assert said[0]["line"].startswith(line)


@pytest.mark.parametrize(("agent", "frozen"), [(True, 1), (False, 0)], ids=["a worker", "the store's holder"])
def test_a_frozen_worker_is_told_within_the_heartbeats_timeout(tmp_path: Path, agent: bool, frozen: int) -> None:
    """The exchange itself would wait for 20 s; the others end at once, and are not held up by the exchange in hand."""
    store = processes.open_store()
    port = store.port if agent else free_port()
    workers = []
    for rank in range(3):
        place = {"RANK": rank, "WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, TOKEN: "ours"}
        place["TORCHELASTIC_USE_AGENT_STORE"] = agent or None
        changes = {
            "environment": place,
            "fingerprint": None,
            "frozen": frozen,
            "heartbeat_timeout": 0.5,
        }
        workers.append(_forks().Process(target=_join, args=(changes, rank, str(tmp_path / str(rank)))))
    for worker in workers:
        worker.start()
    others = [worker for rank, worker in enumerate(workers) if rank != frozen]
    try:
        # a process takes seconds to start on a busy machine, which is no waiting for the one that is frozen
        while len(list(tmp_path.glob("*.begun"))) < 3:
            assert all(worker.exitcode in (None, 1) for worker in workers)
            time.sleep(0.02)
        began = time.monotonic()
        for worker in others:
            worker.join(15)
        assert time.monotonic() - began < 15
        assert [worker.exitcode for worker in others] == [1, 1]
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    lines = [json.loads((tmp_path / str(rank)).read_text())["line"] for rank in range(3) if rank != frozen]
    reason = "no heartbeat for 0.5 s: its process is frozen, or its machine is out of reach"
    assert lines == [f"worker {frozen} is lost: {reason}"] * 2


def test_who_does_not_come_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = processes.open_store()
    place = {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    for name, value in {**place, "TORCHELASTIC_USE_AGENT_STORE": True}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ShoestringError, match=r"worker 0 did not arrive within 0\.3 s"):
        join(0.3)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    with pytest.raises(ShoestringError, match=r"worker 0 does not answer at 127\.0\.0\.1:\d+ within 0\.2 s"):
        join(0.2)


def test_an_environment_without_a_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLACE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="RANK is not in the environment"):
        join(1)
    place = {"RANK": "0", "WORLD_SIZE": "two", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="WORLD_SIZE is 'two'"):
        join(1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="the run is of 3 workers, and 2 were started"):
        join(1, fingerprint=RunFingerprint(workers=3))
    for name, value in {"MASTER_ADDR": "192.0.2.7", TOKEN: ""}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="SHOESTRING_TOKEN is empty"):
        join(0.1)


def test_a_process_that_nobody_started_as_one_of_several_is_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLACE:
        monkeypatch.delenv(name, raising=False)
    transport = join(1)
    mine = torch.tensor([7], dtype=torch.uint8)
    assert (transport.rank, transport.size, transport.exchange([mine], [1], tag=0).result()) == (0, 1, [mine])
    leave(transport)
    with pytest.raises(UsageError, match="the run is of 3 workers, and this process was started alone"):
        join(1, fingerprint=RunFingerprint(workers=3))


WORKER = """
import sys, torch
from pathlib import Path
from shoestring.sync.rendezvous.joining import PLACE, join, leave
transport = join(30)
found = transport.exchange([torch.tensor([transport.rank], dtype=torch.uint8)] * transport.size, None, tag=0).result()
leave(transport)
Path(sys.argv[1], f"found-{transport.rank}").write_text(str([each.tolist() for each in found]))
"""


@pytest.mark.slow
def test_a_team_joins(tmp_path: Path) -> None:
    with launch([sys.executable, "-c", WORKER, str(tmp_path)], 2, outputs=tmp_path) as team:
        assert team.wait() == 0
    assert [(tmp_path / f"found-{rank}").read_text() for rank in range(2)] == ["[[0], [1]]"] * 2


@pytest.mark.slow
def test_torchrun_starts_workers_that_join(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, tmp_path]
    subprocess.run(command, check=True, timeout=120, env={**os.environ, TOKEN: "ours", "OMP_NUM_THREADS": "1"})  # type: ignore[arg-type]
    assert [(tmp_path / f"found-{rank}").read_text() for rank in range(2)] == ["[[0], [1]]"] * 2
