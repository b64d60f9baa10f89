"""The workers of runs are forked, instead of importing torch afresh: seconds of each test.

`install`, in a forked command, has `shoestring.launch.processes` start workers by `ForkedWorker`: they are forked from the
command itself. It computes nothing before it starts its workers but what a plan measures, and the threads it has by then hold
no lock that a worker needs. What is tied to its parent, its cores and its session is so here too. Those of an elastic run, whose
host has threads of a library that does not outlive a fork, are forked from the warm process, as are all whose run is begun in a
process of tests (`install_in_tests`), and the servers that multiprocessing forks from.
"""

import ctypes
import os
import runpy
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from shoestring.launch import fleet, processes
from tests.warm_start import for_loading, fork_servers_too, gated

PR_SET_PDEATHSIG = 1


class ForkedWorker(subprocess.Popen[bytes]):
    """A process that `processes.tied` describes, forked. As `subprocess.Popen`, in what `launch` uses."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: int,
        stdout: IO[bytes] | None,
        stderr: int | None,
        start_new_session: bool,
    ) -> None:
        assert (stdin, start_new_session) == (subprocess.DEVNULL, True)
        head, (cores, _, flag, module, *words) = command[:6], command[6:]
        assert head[:4] == [sys.executable, "-I", "-S", "-c"]
        assert flag == "-m"
        self.args, self.returncode = command, None
        self.stdin = self.stdout = self.stderr = None
        # what `Popen` itself keeps for poll, wait and send_signal
        self._child_created, self._waitpid_lock = True, processes.threading.Lock()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            status = 1
            try:
                self._become(
                    env, stdout, both=stderr == subprocess.STDOUT, cores={int(core) for core in cores.split(",")}
                )
                status = run(module, words)
            finally:
                os._exit(status)  # the libraries' own threads are not here: nothing may wait for them

    @staticmethod
    def _become(env: Mapping[str, str], stdout: IO[bytes] | None, both: bool, cores: set[int]) -> None:
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        os.sched_setaffinity(0, cores)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if stdout is not None:
            os.dup2(stdout.fileno(), 1)
        if both:
            os.dup2(1, 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(env)


def run(module: str, words: Sequence[str]) -> int:
    """Run a module as a program. Returns its status."""
    sys.argv = [module, *words]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status: Any = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    return status if isinstance(status, int) else int(status is not None)


def _popen(command: Sequence[str], *, env: Mapping[str, str], **more: Any) -> "subprocess.Popen[bytes]":
    """A worker, forked where its environment asks for nothing that a library has read already."""
    ours = command[1:4] == ["-I", "-S", "-c"] and command[8:9] == ["-m"]
    if ours and for_loading(env) == for_loading(os.environ):
        return ForkedWorker(command, env=env, **more)
    return subprocess.Popen(command, env=env, **more)


def _starts_by(module: Any, popen: Callable[..., Any]) -> None:
    module.subprocess = types.SimpleNamespace(**{**vars(subprocess), "Popen": popen})


def install() -> None:
    """From now on, in this process and those that are forked from it."""
    _starts_by(processes, _popen)
    _starts_by(fleet, gated)
    fork_servers_too()


def install_in_tests() -> None:
    """Likewise, in a process that has threads."""
    _starts_by(processes, gated)
    _starts_by(fleet, gated)
    fork_servers_too()
