"""What tune.py found, as the tables of docs/tune.md.

python bench/tune_table.py evidence/tune-headers.json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

HEAD = (
    "method",
    "gained, nats a token",
    "forgotten",
    "steps",
    "windows a step",
    "memory",
    "gain against `full`",
    "keeping against `full`",
)


def against(arm: dict[str, Any], key: str) -> str:
    """The paired difference from the base with its interval, and the verdict; nothing of the base itself."""
    found = arm.get(f"{key}_against_base")
    if found is None:
        return ""
    low, high = found["interval"]
    verdict = found["verdict"].replace("no difference shown", "none shown")
    return f"{found['difference']:+.3f} ({low:+.3f} to {high:+.3f}): {verdict}"


def row(arm: dict[str, Any]) -> tuple[str, ...]:
    """An arm: means over its seeds, and the most memory of any."""
    name = f"`{arm['method']}`" + (f", {arm['replay']:.0%} replay" if arm["replay"] else "")
    steps, memory = mean(run["steps"] for run in arm["runs"]), max(run["peak_memory"] for run in arm["runs"])
    figures = (
        f"{arm['gain']:.3f}",
        f"{arm['forgotten']:+.3f}",
        f"{steps:.0f}",
        str(arm["batch"]),
        f"{memory / 1e9:.1f} GB",
    )
    return name, *figures, against(arm, "gain"), against(arm, "forgotten")


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("found", type=Path, help="written by `tune.py --json`")
    arms = json.loads(parser.parse_args(words).found.read_text())["arms"]
    for cells in (HEAD, ("---",) * len(HEAD), *map(row, arms)):
        print(f"| {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
