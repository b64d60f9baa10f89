"""A process that stands for one that is forked elsewhere: `python -I -S tests/warm_gate.py ADDRESS KIND ... -c CODE WORDS`.

It imports next to nothing. The process of `tests.warm_server` that listens at ADDRESS forks one which runs CODE (or `-m MODULE`)
with WORDS, has this one's environment, folder, cores and every descriptor under its number, and is killed once this one has
ended. This one ends as that one does, and hands on the signals that ask to end. KIND: as in `tests.warm_server`.
"""

import array
import json
import os
import signal
import socket
import sys


def open_descriptors() -> list[int]:
    """Those that this process was started with."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:  # the one that listed them
            continue
        found.append(int(name))
    return sorted(found)


def line(descriptor: int) -> bytes:
    read = b""
    while not read.endswith(b"\n"):
        more = os.read(descriptor, 1)
        if not more:
            sys.exit("the warm process has ended")
        read += more
    return read


def main() -> None:
    address, kind, *words = sys.argv[1:]
    place = next(place for place, word in enumerate(words) if word in ("-c", "-m"))
    numbers = open_descriptors()
    ours, theirs = os.pipe()
    message = {
        "kind": kind,
        words[place]: words[place + 1],
        "words": words[place + 2 :],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "cores": sorted(os.sched_getaffinity(0)),
        "numbers": numbers,
        "tied": True,
    }
    asked_to_end = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, asked_to_end)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asked:
        asked.connect(address)
        passed = array.array("i", [*numbers, theirs])
        asked.sendmsg([json.dumps(message).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
        for descriptor in {*numbers, theirs} - {2}:
            os.close(descriptor)
        process = int(line(ours))
        for number in asked_to_end:
            # a Ctrl-C reaches one of the same session by itself
            alone = kind == "worker" or number == signal.SIGTERM
            signal.signal(number, (lambda number, frame: os.kill(process, number)) if alone else signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, asked_to_end)
        status = int(line(ours))
    if status < 0:
        if -status in asked_to_end:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main()
