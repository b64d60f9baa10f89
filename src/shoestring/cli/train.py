"""`shoestring train`: train a language model within a budget, or resume a run."""

import datetime
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from shoestring.budget.units import show, show_seconds
from shoestring.cli.arguments import Arguments, seconds_above_zero, whole
from shoestring.cli.configuration_help import KEYS
from shoestring.cli.planning import add_noise_scale_flag, moved_places
from shoestring.cli.run_view import RunView
from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.errors import ShoestringError, UsageError
from shoestring.launch.crew import leads, processes, started
from shoestring.launch.elastic import Hosting
from shoestring.launch.host import listening
from shoestring.launch.launch import Launch
from shoestring.launch.request import TrainingRequest
from shoestring.model.hf import export
from shoestring.report.page import write_report
from shoestring.sync.transport.heartbeat import TIMEOUT
from shoestring.train.openers.run import folded
from shoestring.train.run_folder import RunFolder
from shoestring.train.session import Outcome
from shoestring.train.stored_run import stored_run
from shoestring.train.trained import load_trained


def _conclude(folder: RunFolder, outcome: Outcome, console: Screen) -> None:
    found = outcome.summary
    spent = f"{show_seconds(found['seconds'])}, {show('tokens', found['tokens'])}, {show('flops', found['flops'])}"
    if found.get("workers", 1) > 1:
        spent += _exchanged(found)
    if outcome.stopped == "interrupted":
        console.print(
            f"stopped at step {found['steps']} after {spent}; go on with: shoestring train --resume {folder.path}",
            soft_wrap=True,
        )
        return
    console.print(
        Text.assemble(
            (
                f"held-out loss {found['heldout_loss']:.4f} nats per token, {found['bits_per_byte']:.4f} bits per byte",
                "bold",
            ),
            f" ({found['heldout_figure']})" if "heldout_figure" in found else "",
            f" after {found['steps']} steps, {spent}",
        ),
        soft_wrap=True,
    )
    if outcome.sample:
        console.print("sample:", style="bold")
        console.print(outcome.sample, soft_wrap=True)


def _exchanged(found: Mapping[str, Any]) -> str:
    """What a summary says of exchanges between workers, and of what goes on within those that are several processes."""
    sent, workers = found["exchanges"]["sent"], found["workers"]
    within = found.get("bytes_within")
    if within is None:
        sent *= found["processes"] / workers  # a process may have several workers
    waited = show_seconds(found["exchanges"]["exposed"])
    said = f" by {workers} workers; each sent {show('bytes', sent)} and waited {waited} for exchanges"
    if within is not None:
        said += f"; {show('bytes', within)} came to this process from within its worker"
    return said


def _export(folder: RunFolder, console: Screen) -> None:
    """Write RUN/transformers, after the budget's end and outside it: converting is no part of training. Quantised weights
    leave as the numbers they stand for, as no stock class computes with their codes."""
    target = folder.path / "transformers"
    shutil.rmtree(target, ignore_errors=True)  # a run resumed from an earlier step finishes twice
    stored, how = stored_run(str(folder.path)), ""
    try:
        if stored is not None:  # weight by weight
            opened, weights = stored
            model: Any = opened.model
        else:
            trained = load_trained(folder.path)
            model, weights = folded(trained), None
            names = [one.name for one in trained.applied]
            how = f", with {', '.join(names)} folded into plain weights" if names else ""
            rounded = any(choice.options.get("activations", "none") != "none" for choice in trained.config.edits)
            how += ", activations not rounded" if rounded else ""
        export(model, folder.tokenizer, target, end=folder.read_tokenizer().end, weights=weights)
    except UsageError as error:
        console.print(f"not exported to transformers: {error}")
    else:
        console.print(f"for transformers: {target}{how}", soft_wrap=True)


def run(words: Sequence[str]) -> int:
    parser = Arguments(
        "train", "Train a language model within a budget. Without a recipe, the plan for the budget is trained.", KEYS
    )
    parser.add_argument("recipe", nargs="?", type=Path, help="a TOML file; what it leaves open is planned")
    parser.add_argument("--out", type=Path, help="the run's folder (default: runs/DATE-TIME)")
    parser.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with a run from its newest checkpoint, exactly"
    )
    parser.add_argument(
        "--from-step", type=whole(0, 2**62), metavar="STEP", help="with --resume: from this step's checkpoint"
    )
    parser.add_argument("--restart", action="store_true", help="with --transport torchft: start workers that die again")
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help="with --transport torchft: where other machines may join (default: none can)",
    )
    parser.add_argument(
        "--heartbeat-timeout",
        type=seconds_above_zero,
        default=TIMEOUT,
        metavar="SECONDS",
        help="with --workers or torchrun: a worker without a heartbeat for so long counts as frozen, and the run ends "
        f"(default {TIMEOUT:g})",
    )
    parser.add_argument(
        "--max-restarts",
        type=whole(0, 1000),
        default=0,
        metavar="N",
        help="with --workers or [parallel]: where a process is lost, go on from the last checkpoint, at most N times (default 0)",
    )
    add_noise_scale_flag(parser)
    found, rest = parser.read_with_configuration(words)
    if found.resume and (found.recipe or found.out or found.noise_scale_of):
        raise UsageError("--resume goes on with a run as it is: give no recipe, --out or --noise-scale-of with it")
    if found.from_step is not None and not found.resume:
        raise UsageError("--from-step goes with --resume RUN")
    out = found.out or Path("runs") / datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    named = [] if found.out or found.resume else ["--out", str(out)]
    train = [sys.executable, "-m", "shoestring", "train"]
    # under torchrun all workers write to one terminal; those that a command has started have a file each
    console = Screen(quiet=not leads() and started() is None)
    with (
        shown_on(console),
        Launch(
            RunView(console),
            heartbeat_timeout=found.heartbeat_timeout,
            hosting=Hosting(found.restart, listening(found.listen), time.monotonic()),
            command=[*train, *words, *named],
            resume_command=[*train, "--heartbeat-timeout", str(found.heartbeat_timeout), "--resume"],
            max_restarts=found.max_restarts if started() is None else 0,  # workers are given the same words
        ) as launch,
    ):
        if found.resume:
            ended = launch.resume(found.resume, found.from_step, moved_places(rest))
        else:
            ended = launch.begin(
                TrainingRequest.read(found.recipe, rest, found.noise_scale_of, processes=processes()), out
            )
        if ended.leads:
            _report(ended.folder, ended.outcome, console)
    return 0 if ended.outcome.signal is None else 128 + ended.outcome.signal


def _report(folder: RunFolder, outcome: Outcome, console: Screen) -> None:
    """What follows a run, for people."""
    _conclude(folder, outcome, console)
    if outcome.stopped == "finished":
        _export(folder, console)
        try:
            console.print(f"report: {write_report([folder.path])}", soft_wrap=True)
        except OSError as error:
            raise ShoestringError(f"the run is whole, its report was not written: {error.strerror}") from None
