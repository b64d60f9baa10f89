"""Asked to stop: SIGTERM and Ctrl-C end the run after the step in hand, with a checkpoint."""

import multiprocessing
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """While open, SIGTERM and SIGINT set `asked` to the signal's number instead of ending the process; a second Ctrl-C
    ends it at once. Outside the main thread, where Python allows no handlers, `asked` is only set by hand.

    What one within another hears, the other has heard too once it is closed: a run may be at its end when it is asked to stop."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, StopRequest) and outer.asked is None:
                outer.asked = self.asked


GRACE = 60.0
"""Seconds that a process has for its last step and checkpoint once the one that started it is gone."""


def stop_with_parent() -> None:
    """Have this process stop as by SIGTERM when the one that started it by `multiprocessing` ends, however it ended: one that is
    killed cannot say so, and what it started would go on for nobody."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
