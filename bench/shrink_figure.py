"""How healing went, and what its end was predicted to be when a first part of it was done: from the figures of shrink.py.

A panel for each model and share; a line for each method whose healing was long enough to be predicted: the loss of its objective
against the share of its healing that is done. The bar at the right is the interval that was predicted of nine ends in ten; the
point beside it what healing came to.

    python bench/shrink_figure.py evidence/shrink.json --figure docs/healing.svg
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoestring.errors import UsageError
from shoestring.report.drawing import COLOUR, SERIES, label_ends, name_axes, panel, save, style

BARS = 1.03
"""Where the bars stand: behind the end."""

MADE_UP = {
    "arm": "nothing",
    "curve": [(share / 20, 3 - share / 20) for share in range(21)],
    "healing": {"seen": 0.05, "predicted": {"value": 2.1, "low": 1.8, "high": 2.5}, "came_to": 2.05},
}


def predicted(paths: Sequence[Path]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(model and share, its arms whose end was predicted), of all files. Raises: UsageError where there are none."""
    found = list[tuple[str, list[dict[str, Any]]]]()
    for path in paths:
        for one in json.loads(path.read_text())["results"]:
            arms = [arm for arm in one.get("arms", ()) if (arm.get("healing") or {}).get("predicted")]
            if arms:
                found.append((f"{Path(one['place']).name} to {one['share']:.0%} of its time a token", arms))
    if not found:
        raise UsageError("no healing in these files was long enough to be predicted")
    return found


@style()
def draw(arms: Sequence[Mapping[str, Any]], title: str, target: Path) -> None:
    """Write `target`, an SVG."""
    figure, axes = panel(720, 340, left=52, right=170, top=44)
    axes.axvspan(0, max(arm["healing"]["seen"] for arm in arms), color=COLOUR["mark"], linewidth=0)
    ends = []
    for place, arm in enumerate(arms):
        series = SERIES[place % len(SERIES)]
        shares, losses = zip(*arm["curve"], strict=True)
        axes.plot(shares, losses, color=COLOUR[series], linewidth=1.3)
        said, came, at = arm["healing"]["predicted"], arm["healing"]["came_to"], BARS + 0.02 * place
        axes.plot([at, at], [said["low"], said["high"]], color=COLOUR[series], linewidth=2)
        axes.plot([at], [said["value"]], "_", color=COLOUR[series], markersize=8)
        axes.plot([at], [came], "o", color=COLOUR[series], markersize=4.5)
        ends.append((at, came, str(arm["arm"]).replace("_", " "), series))
    axes.set_xlim(0, BARS + 0.02 * len(arms))
    name_axes(axes, "share of the healing that is done; shaded: what predictions saw", title)
    label_ends(axes, ends, size=11)
    with open(target, "wb") as file:
        save(figure, file, "svg")


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, nargs="*", help="JSON files of shrink.py")
    parser.add_argument("--smallest", action="store_true", help="a made-up curve: does it draw?")
    parser.add_argument(
        "--figure", type=Path, required=True, help="an SVG; of several panels the later have -2, -3 in their names"
    )
    options = parser.parse_args(words)
    found = [("a made-up model", [MADE_UP])] if options.smallest else predicted(options.figures)
    for number, (title, arms) in enumerate(found, 1):
        path = options.figure if number == 1 else options.figure.with_stem(f"{options.figure.stem}-{number}")
        draw(arms, f"healing loss of {title}", path)
        for arm in arms:
            said, came = arm["healing"]["predicted"], arm["healing"]["came_to"]
            held = "within" if said["low"] <= came <= said["high"] else "outside"
            print(f"{title}, {arm['arm']}: {came:.3f}, {held} {said['low']:.3f} to {said['high']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
