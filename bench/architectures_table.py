"""What architectures.py and architectures_seconds.py found, as the table of docs/architectures.md.

--findings: as evidence/notes.toml has it, a finding of each method.

    python bench/architectures_table.py evidence/architectures.json evidence/architectures-seconds.json
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from architectures import arms

from shoestring.method import methods

BASE = "dense"
HEAD = (
    "arm",
    "nats at equal FLOPs",
    "steps",
    "at equal seconds, against dense",
    "parameters",
    "MB in use at 256",
    "at 4,096",
    "ms a token at 256",
    "at 4,096",
)
PREFIXES = {"moe": "router", "embedding": "embedding", "norm": "norm", "residual": "residual"}


def against(found: dict[str, Any] | None) -> str:
    """The paired difference with its interval, and the verdict; nothing where the arm was not among the best."""
    if found is None or found.get("difference") is None:
        return ""
    low, high = found["interval"]
    verdict = found["verdict"].replace("no difference shown", "none shown")
    return f"{found['difference']:+.3f} ({low:+.3f} to {high:+.3f}): {verdict}"


def row(line: dict[str, Any], seconds: dict[str, Any] | None) -> tuple[str, ...]:
    """An arm. In use: the weights, float32, and cache and state of one row."""
    each = {one["past"]: one for one in line["serving"]}
    used, speed = [], []
    for past in (256, 4096):
        one = each.get(past)
        used.append("" if one is None else f"{(4 * line['parameters'] + one['state_bytes']) / 1e6:.2f}")
        speed.append("" if one is None else f"{one['ms_a_token']:.2f}")
    figures = f"{line['loss']:.3f}", str(line["steps"]), against(seconds), f"{line['parameters']:,}"
    return line["arm"], *figures, *used, *speed


def slot(arm: str) -> tuple[str, str]:
    """(kind, name) of the method that an arm has."""
    first, _, rest = arm.partition(" ")
    if first in PREFIXES:
        return PREFIXES[first], rest
    kinds = {
        card.name: card.kind for kind in ("token mixer", "channel mixer", "span") for card in methods("model", kind)
    }
    if "span" in arms()[arm]:
        return "span", first
    return ("token mixer", first) if "token_mixer" in arms()[arm] else (kinds[first], first)


def findings(lines: Sequence[dict[str, Any]], judged: dict[str, Any], evidence: str) -> Iterator[str]:
    """A finding of each method, of all its arms."""
    dense = next(line["loss"] for line in lines if line["arm"] == BASE)
    grouped: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        if line["arm"] == BASE:
            continue
        where = (
            "in two of three layers"
            if line["arm"].endswith(" hybrid")
            else "in all layers"
            if slot(line["arm"])[0] == "token mixer"
            else ""
        )
        said = f"{where} {line['loss']:.3f}".strip()
        shown = against(judged.get(line["arm"]))
        grouped.setdefault(slot(line["arm"]), []).append(said + (f" (at equal seconds {shown})" if shown else ""))
    for (kind, name), each in sorted(grouped.items()):
        how = "small model, equal FLOPs, one seed, best of three rates"
        said = f"{how}: {'; '.join(each)} nats a token, the dense model {dense:.3f}"
        yield f'[[findings]]\nengine = "model"\nkind = "{kind}"\nname = "{name}"\nsaid = "{said}"\nevidence = "{evidence}"\n'


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("found", type=Path, help="written by `architectures.py --json`")
    parser.add_argument("seconds", type=Path, nargs="?", help="written by `architectures_seconds.py --json`")
    parser.add_argument("--findings", action="store_true", help="print findings for evidence/notes.toml")
    options = parser.parse_args(words)
    lines = sorted(json.loads(options.found.read_text())["runs"], key=lambda line: float(line["loss"]))
    judged: dict[str, Any] = {}
    if options.seconds is not None:
        judged = {one["arm"]: one for one in json.loads(options.seconds.read_text())["verdicts"]}
    if options.findings:
        print("\n".join(findings(lines, judged, options.found.name)))
        return 0
    for cells in (HEAD, ("---",) * len(HEAD), *(row(line, judged.get(line["arm"])) for line in lines)):
        print(f"| {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
