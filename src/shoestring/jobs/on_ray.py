"""Jobs made through Ray: on the machines of a cluster that runs already, or by processes that it starts on this one.

A job goes out as JSON, and its answer and the files of its folder come back as bytes through Ray's object store. What is loaded
from them here is JSON and file content. Ray itself pickles its own messages, and runs what it is sent: use a cluster of your own
that nobody else reaches.

A job that is lost, with its machine or with the process that makes it, is begun anew where there is room, `TRIES` times in all.
"""

import json
import logging
import os
import signal
import socket
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from shoestring.errors import ShoestringError, UsageError
from shoestring.jobs.carried import packed, unpack
from shoestring.jobs.job import Job, JobMachine, Made
from shoestring.jobs.processes import Processes
from shoestring.jobs.runner import TRIES, Lost

log = logging.getLogger(__name__)

CARRIED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY")
"""Variables that a job finds as they are here, or finds absent: Ray sets the first, and sums come out otherwise then."""

LOOK = 1.0
"""Seconds after which it is looked anew how much room the cluster has."""


class _Node(NamedTuple):
    """A machine of the cluster. cores, gpus: that Ray may give to jobs."""

    name: str
    host: str
    cores: float
    gpus: float


class _Begun(NamedTuple):
    job: Job
    tries: int
    node: _Node | None


class RayRunner:
    """Makes jobs on a Ray cluster. A context manager: what it started of Ray ends with it.

    address: '' starts Ray's processes on this machine; 'auto' or 'HOST:PORT' is of a cluster that runs already, each machine
    of which has the same versions of Python, Ray, shoestring and torch.
    at_once: jobs at a time; None: as many as there is room for.
    threads, gpus: of the job that needs most.
    whole_machines: each job has a machine to itself.
    Raises: UsageError where Ray is missing, there is no cluster, or no machine of it is large enough.
    """

    def __init__(
        self, address: str, *, at_once: int | None = None, threads: int = 1, gpus: int = 0, whole_machines: bool = False
    ) -> None:
        self.at_once, self.gpus, self.whole_machines = at_once, gpus, whole_machines
        self.ray = _ray()
        if self.ray.is_initialized():
            raise UsageError("this process has joined a Ray cluster already: leave it first (ray.shutdown)")
        logging.getLogger("ray").setLevel(logging.ERROR)
        if address:
            self._join(address)
        else:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            self._start(max(cores, (at_once or 1) * (threads or cores)))
        try:
            self._check_room(threads, gpus)
        except BaseException:
            self.ray.shutdown()
            raise

    def _join(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        if host and "/" not in host and port.isdecimal():  # Ray itself would wait for minutes
            try:
                socket.create_connection((host, int(port)), timeout=10).close()
            except (OSError, OverflowError) as error:
                raise UsageError(f"--on ray:{address}: no cluster answers there ({_line(error)})") from None
        try:
            self.ray.init(address, log_to_driver=False, configure_logging=False)
        except Exception as error:  # Ray raises what there is, down to `Exception` itself
            raise UsageError(f"--on ray:{address}: no cluster answers there ({_line(error)})") from None

    def _start(self, cores: int) -> None:
        """Start Ray on this machine with room for jobs of so many cores; on a busy one it may need more than one try."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
        os.environ.setdefault("RAY_worker_niceness", "0")  # a run computes as it does alone; Ray would have it yield
        for left in reversed(range(TRIES)):
            try:
                self.ray.init(
                    "local", num_cpus=cores, include_dashboard=False, log_to_driver=False, configure_logging=False
                )
                return
            except Exception as error:
                self.ray.shutdown()
                if not left:
                    raise ShoestringError(f"--on ray: Ray could not be started here: {_line(error)}") from None

    def _nodes(self) -> list[_Node]:
        return [
            _Node(each["NodeID"], each["NodeManagerHostname"], float(has.get("CPU", 0)), float(has.get("GPU", 0)))
            for each in self.ray.nodes()
            if each["Alive"] and (has := each["Resources"]).get("CPU", 0)
        ]

    def _check_room(self, threads: int, gpus: int) -> None:
        nodes = self._nodes()
        if not any(node.cores >= threads and node.gpus >= gpus for node in nodes):
            there = ", ".join(f"{node.host} {node.cores:g} cores, {node.gpus:g} GPUs" for node in nodes) or "no machine"
            raise UsageError(
                f"a job needs {threads} cores and {gpus} GPUs of one machine, and the cluster has: {there}"
            )

    def machines(self) -> list[JobMachine]:
        """Those that jobs can be made on now, each asked what it is."""
        asking = dict[Any, _Node]()
        for node in self._nodes():  # without a GPU given to it, a process sees none
            job = Job(f"look at {node.host}", "shoestring.jobs.job:identify", None, gpus=int(min(self.gpus, node.gpus)))
            asking[self._submitted(job, node, 0)] = node
        found = []
        for answer, node in asking.items():
            try:
                told, _ = self.ray.get(answer)
            except self.ray.exceptions.RayError as error:
                raise ShoestringError(f"{node.host} of the cluster does not answer: {_line(error)}") from None
            made = _told(told)
            if made is None:
                raise ShoestringError(f"{node.host} of the cluster cannot make jobs: is shoestring installed there?")
            found.append(made)
        here = JobMachine.here()
        for machine in found:
            if machine.versions != here.versions:
                raise UsageError(
                    f"{machine.host} has {machine.versions}, and here it is {here.versions}: have them alike"
                )
        return found

    def map(self, jobs: Iterable[Job]) -> Generator[Made, None, None]:
        """As `Runner.map`. A job whose process is killed counts as lost, too."""
        waiting, begun, lost = iter(jobs), dict[Any, _Begun](), list[Job]()
        again, ended, reason = list[_Begun](), False, ""
        try:
            while True:
                while (again or not ended) and (free := self._free(begun.values())) is not False:
                    if again:
                        job, tries, _ = again.pop(0)
                    elif (taken := next(waiting, None)) is not None:
                        job, tries = taken, 0
                        log.info(job.name)
                    else:
                        ended = True
                        break
                    node = free if isinstance(free, _Node) else None
                    begun[self._submitted(job, node)] = _Begun(job, tries + 1, node)
                if begun:
                    for answer in self.ray.wait(list(begun), num_returns=1, timeout=LOOK)[0]:
                        one = begun.pop(answer)
                        try:
                            yield self._received(answer, one)
                        except _Gone as gone:
                            reason = str(gone)
                            if one.tries < TRIES:
                                log.warning(f"{one.job.name}: {reason}; begun anew ({one.tries + 1} of {TRIES} times)")
                                again.append(one)
                            else:
                                lost.append(one.job)
                elif ended and not again:
                    break
                else:
                    raise ShoestringError("the Ray cluster has no machine left that jobs can be made on")
        finally:
            for answer in begun:
                with suppress(self.ray.exceptions.RayError):
                    self.ray.cancel(answer, force=True)
        if lost:
            raise Lost(lost, TRIES, reason)

    def _free(self, begun: Iterable[_Begun]) -> "_Node | bool":
        """Where the next job may begin: a machine, True for Ray's choice, False for nowhere yet."""
        busy = list(begun)
        if self.at_once is not None and len(busy) >= self.at_once:
            return False
        nodes = self._nodes()
        if not self.whole_machines:
            taken = sum(self._cores(one.job, max((node.cores for node in nodes), default=0)) for one in busy)
            return bool(nodes) and taken < sum(node.cores for node in nodes)
        taken_by = Counter(one.node.name for one in busy if one.node is not None)
        free = [node for node in nodes if not taken_by[node.name]]
        return free[0] if free else False

    @staticmethod
    def _cores(job: Job, all_of_them: float) -> float:
        return job.threads or all_of_them

    def _submitted(self, job: Job, node: _Node | None, cores: float | None = None) -> Any:
        """Give a job to the cluster.

        node: where it must be made; None: where there is room.
        cores: that it takes; None: all of that node, or where there is none, what the job says.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options: dict[str, Any] = {"max_retries": 0, "num_gpus": job.gpus}
        if node is None:
            most = max(each.cores for each in self._nodes())
            options |= {"num_cpus": self._cores(job, most), "scheduling_strategy": "SPREAD"}
        else:
            options |= {
                "num_cpus": node.cores if cores is None else cores,
                "scheduling_strategy": NodeAffinitySchedulingStrategy(node.name, soft=False),
            }
        plain = json.dumps(
            {"work": job.work, "asked": job.asked, "keeps": job.folder is not None, "leaves": job.leaves}
        )
        environment = {name: os.environ.get(name) for name in CARRIED}
        return self.ray.remote(**options)(_made_there).remote(plain, environment)

    def _received(self, answer: Any, one: _Begun) -> Made:
        """Raises: _Gone where the job has to be done again."""
        errors = self.ray.exceptions
        try:
            told, files = self.ray.get(answer)
        except errors.RayTaskError as error:
            raise ShoestringError(f"{one.job.name}: {_line(error.cause)}") from None
        except errors.RayError as error:
            raise _Gone(f"lost with the machine or process that made it ({type(error).__name__})") from None
        found = json.loads(told)
        if found["status"] == -signal.SIGKILL:
            raise _Gone("its process was killed")
        if one.job.folder is not None:
            unpack(files, one.job.folder)
        return Made(one.job, found["status"], found["value"], _told(told), one.tries, found["said"])

    def __enter__(self) -> "RayRunner":
        return self

    def __exit__(self, *error: Any) -> None:
        self.ray.shutdown()


class _Gone(Exception):
    """A job has to be done again, for this reason."""


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UsageError("--on ray: this needs Ray: pip install 'shoestring[ray]'") from None
    return ray


def _line(error: BaseException) -> str:
    """What an error says first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _told(told: str) -> JobMachine | None:
    machine = json.loads(told)["machine"]
    return None if machine is None else JobMachine(**machine)


_processes: dict[str, Processes] = {}
"""Of this worker of Ray: kept, so that what its jobs are forked from imports everything once."""


def _made_there(job: str, environment: Mapping[str, str | None]) -> tuple[str, dict[str, bytes]]:
    """The task of Ray: a job, given as JSON, made in a process of its own. Returns how it ended, as JSON, and its files."""
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    asked = json.loads(job)
    module = asked["work"].partition(":")[0]
    runner = _processes.setdefault(module, Processes(preload=[module]))
    with tempfile.TemporaryDirectory(prefix="shoestring-job-") as scratch:
        folder = Path(scratch) / "run" if asked["keeps"] else None
        with closing(runner.map([Job("", asked["work"], asked["asked"], folder)])) as all_made:
            (made,) = all_made
        files = packed(folder, asked["leaves"]) if folder is not None and folder.is_dir() else {}
    machine = None if made.machine is None else made.machine.as_json
    return json.dumps({"status": made.status, "value": made.value, "machine": machine, "said": made.said}), files
