"""`shoestring ladder`: cheap runs of several sizes, from which plans learn."""

import argparse
import datetime
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from shoestring.budget.units import parse_amount, show_seconds
from shoestring.cli.arguments import Arguments, whole
from shoestring.cli.configuration_help import KEYS
from shoestring.cli.json_output import add_json_flag, print_json
from shoestring.cli.machine_flag import add_machine_flag
from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.config import merge, overrides, read_toml
from shoestring.errors import ShoestringError, UsageError
from shoestring.jobs.runner import Lost, elsewhere
from shoestring.launch.ladder import Climbed, Ladder
from shoestring.log_lines import held_back
from shoestring.plan.memory import learned_runs

DESCRIPTION = """Train a ladder of small models within an allowance of time: sizes by numbers of tokens,
and batches and rates about the rules'. Every finished run is kept where `shoestring plan` and `train` learn from. With enough of
them they choose size, batch and rates by laws fitted to the ladder, and say so. Stopped or killed, it goes on with --resume."""

BUDGET = "30m"


def run(words: Sequence[str]) -> int:
    parser = Arguments("ladder", DESCRIPTION, KEYS)
    parser.add_argument("recipe", nargs="?", type=Path, help="a TOML file: what all runs have in common")
    parser.add_argument("--budget", help=f"seconds for all runs together (default {BUDGET})")
    parser.add_argument(
        "--threads", type=whole(0, 4096), help="of the processor, that the ladder takes (default 1; 0: all)"
    )
    parser.add_argument("--out", type=Path, help="the ladder's folder (default: ladders/DATE-TIME)")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with a ladder that was stopped")
    parser.add_argument("--background", action="store_true", help="go on beside other work, and say where it writes")
    parser.add_argument("--keep-runs", action="store_true", help="keep the checkpoints of all runs")
    add_machine_flag(parser)
    add_json_flag(parser, "what was done and what is left")
    found, rest = parser.read_with_configuration(words)
    if found.resume and (found.recipe or found.out or rest or found.budget or found.threads is not None):
        raise UsageError(
            "--resume goes on with a ladder as it is: give no recipe, --out, --budget, --threads or other flags"
        )
    path = found.resume or found.out or Path("ladders") / datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    console = Screen(stderr=found.json)
    with shown_on(console):
        if found.resume:
            ladder = Ladder(path)
        else:
            asked = merge(read_toml(found.recipe) if found.recipe else {}, overrides(rest))
            budget = found.budget or str(asked.get("budget", BUDGET))
            asked.pop("budget", None)
            ladder = Ladder.begin(path, asked, seconds(budget), 1 if found.threads is None else found.threads)
            console.print(
                f"{len(ladder.rungs)} runs of {len({rung.width * rung.layers for rung in ladder.rungs})} sizes, on "
                f"{ladder.rungs[0].tokens:,} to {max(rung.tokens for rung in ladder.rungs):,} tokens, in {path}",
                soft_wrap=True,
            )
        if found.background:
            return _leave(path, found, console)
        with held_back("shoestring.train"), held_back("shoestring.launch.view"), held_back("shoestring.launch.way"):
            # what each of so many runs has to say is in its folder
            climbed = _climbed(ladder, found.on, keep_runs=found.keep_runs)
    if found.json:
        print_json({"folder": str(path), "climbed": climbed, "allowance": ladder.allowance})
    else:
        _say(climbed, ladder, console)
    return 0 if climbed.stopped is None else 128 + climbed.stopped


def seconds(text: str) -> float:
    """An allowance. Raises: UsageError for anything but a time."""
    resource, amount = parse_amount(text)
    if resource != "seconds":
        raise UsageError(f"--budget {text}: a ladder has an allowance of time, like 30m")
    return amount


def _climbed(ladder: Ladder, on: str | None, *, keep_runs: bool) -> Climbed:
    """Raises: ShoestringError, which says how to go on, where runs were lost too often."""
    if on is None:
        return ladder.climb(keep_runs=keep_runs)
    with elsewhere(on, threads=ladder.threads) as runner:
        runner.machines()  # all of one version, or refused
        try:
            return ladder.climb(runner, keep_runs=keep_runs)
        except Lost as error:
            raise ShoestringError(f"{error}; the rest is kept: shoestring ladder --resume {ladder.path}") from None


def _leave(path: Path, found: argparse.Namespace, console: Screen) -> int:
    """Go on in a process of its own, which outlives this one and its terminal."""
    command = [sys.executable, "-m", "shoestring", "ladder", "--resume", str(path.resolve())]
    command += ["--keep-runs"] if found.keep_runs else []
    command += ["--on", found.on] if found.on else []
    log = path / "ladder.log"
    try:
        with open(log, "ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
    except OSError as error:
        raise ShoestringError(f"the ladder could not be started: {error.strerror}") from None
    console.print(
        f"process {process.pid} goes on and writes to {log}; stop it with: kill {process.pid}", soft_wrap=True
    )
    return 0


def _say(climbed: Climbed, ladder: Ladder, console: Screen) -> None:
    console.print(
        f"{climbed.done} of {len(ladder.rungs)} runs done in {show_seconds(climbed.seconds)} of "
        f"{show_seconds(ladder.allowance)}; kept in {learned_runs()}",
        soft_wrap=True,
    )
    for name, reason in climbed.failed.items():
        console.print(f"{name} failed: {reason}", soft_wrap=True)
    if climbed.stopped is not None:
        console.print(f"stopped; go on with: shoestring ladder --resume {ladder.path}", soft_wrap=True)
    elif climbed.left:
        console.print(f"{climbed.left} runs did not fit into the allowance", soft_wrap=True)
