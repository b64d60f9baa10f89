"""What slow_link.py measures, and the JSON file that it fills."""

import json
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from link_arms import WAYS, Arm, Shape
from link_runs import run
from links import Links

from shoestring import atomic
from shoestring.budget.machine import probe
from shoestring.errors import UsageError
from shoestring.train.run_folder import environment


@dataclass(frozen=True)
class Plan:
    """What is measured. every: H in part 2. byte_steps: steps of DDP in part 1; rounds: (way, H, rounds) of the outer loops there;
    command: whether `shoestring train` by itself, too. ways: of part 2."""

    shape: Shape
    tokens: int
    rates: tuple[float, ...]
    delay: float
    most_seconds: float
    every: int = 30
    byte_steps: int = 20
    rounds: tuple[tuple[str, int, int], ...] = (
        ("muloco_2bit", 30, 3),
        ("muloco_2bit", 100, 2),
        ("streaming_muloco_2bit", 30, 4),
    )
    command: bool = True
    ways: tuple[str, ...] = tuple(WAYS)

    @property
    def steps(self) -> int:
        return -(-self.tokens // self.shape.step_tokens)


class Record:
    """The JSON file: settings, environment and what each arm gave."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"settings": settings, "environment": {}, "arms": {}}
        if path.exists():
            self.content = json.loads(path.read_text())
            if self.content["settings"] != json.loads(json.dumps(settings)):
                raise UsageError(f"{path} holds arms of other settings: name another with --json, or take it away")
        else:
            found = environment(probe()) | {"kernel": platform.release(), "cores": len(os.sched_getaffinity(0))}
            found["iproute2"] = subprocess.run(["ip", "-V"], capture_output=True, text=True, check=False).stdout.strip()
            self.content["environment"] = found

    def save(self) -> None:
        atomic.write_text(self.path, json.dumps(self.content, indent=1) + "\n")

    def arm(self, net: Links, shape: Shape, arm: Arm) -> dict[str, Any]:
        """What an arm gave, now or in an earlier run, which may have been allowed other seconds, and so other steps."""
        if arm.key not in self.content["arms"]:
            started = time.monotonic()
            self.content["arms"][arm.key] = run(net, shape, arm)
            self.save()
            took = time.monotonic() - started
            seconds = self.content["arms"][arm.key]["seconds"]
            print(f"  {arm.key}: {seconds:.1f} s for {arm.steps} steps ({took:.0f} s in all)", flush=True)
        found = self.content["arms"][arm.key]
        return found | {"extrapolated": found["steps"] < found["asked"]}
