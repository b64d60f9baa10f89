"""`shoestring train`: train a language model within a budget, or resume a run."""

import argparse
import datetime
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.text import Text

from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import Machine, cache_folder, probe
from shoestring.budget.units import show, show_seconds
from shoestring.cli.arguments import Arguments, whole
from shoestring.cli.configuration_help import KEYS
from shoestring.cli.crew import (
    add_heartbeat_flag,
    common_step,
    is_worker,
    joined,
    leads,
    needs_processes,
    own_folder,
    processes,
    require_distributed,
    require_same_data,
    settle_run,
    start_workers,
    started,
)
from shoestring.cli.elastic import Terms, host_run
from shoestring.cli.fingerprint import without_places
from shoestring.cli.host import LOOPBACK, listening, require_torchft
from shoestring.cli.live import LiveView
from shoestring.cli.planning import Request, add_noise_scale_flag, decisions, prepared, show_plan, tried
from shoestring.cli.resuming import moved_places, resumed_config
from shoestring.cli.screen import Screen
from shoestring.config import Tree, tree
from shoestring.data.dataset import Dataset
from shoestring.data.prepare import prepare
from shoestring.errors import ShoestringError, UsageError
from shoestring.model.hf import export
from shoestring.model.transformer import Transformer
from shoestring.plan.planner import flops_per_token
from shoestring.report.page import write_report
from shoestring.sync.processes import available_cores, share_of_cores
from shoestring.train.allocator import keep_freed_memory
from shoestring.train.config import RunConfig
from shoestring.train.edits import with_planned_tokens
from shoestring.train.execution import keep_compiled_code, require_device
from shoestring.train.openers.run import folded
from shoestring.train.run_folder import RunFolder, environment
from shoestring.train.session import Outcome, begin, require_same_text, resolve, resume, start
from shoestring.train.trained import load_trained


def _fresh_name() -> Path:
    now = datetime.datetime.now()
    return Path("runs") / now.strftime("%Y-%m-%d-%H%M%S")


def _view(console: Screen, config: RunConfig, machine: Machine) -> LiveView:
    precision = config.execution.precision
    peak = machine.matmul[machine.best_precision if precision == "auto" else precision]
    return LiveView(console, peak, flops_per_token(config.model), config.budget.seconds)


def _begin(request: Request, out: Path | None, console: Screen, held: ExitStack) -> tuple[RunFolder, Outcome]:
    folder = held.enter_context(RunFolder.create(out or _fresh_name(), console.print))
    ledger = Ledger(folder.ledger)
    with ledger.clock("start"):
        machine = probe()
    dataset, config, expected = _decide(request, folder, ledger, machine, console)
    with _view(console, config, machine) as view:
        return folder, start(config, folder, ledger, dataset, machine, view.say, view.show, expected)


def _decide(
    request: Request, folder: RunFolder, ledger: Ledger, machine: Machine, console: Screen
) -> tuple[Dataset, RunConfig, float]:
    """The data, the plan laid under what was asked for, and the seconds it expects; shown, and kept in the run's folder."""

    def say(line: str) -> None:
        console.print(f"  {line}")

    dataset = prepared(request, ledger.clock("data"), say)
    with ledger.clock("measure"):
        made, config = tried(request, machine, dataset, ledger, say)
        config = replace(config, edits=with_planned_tokens(config.edits, made.tokens))
        show_plan(console, request, made, machine)
        folder.write_json("decisions.json", decisions(request, made))
        dataset.tokenizer.save(folder.tokenizer)
    console.print(f"run: {folder.path}", soft_wrap=True)
    return dataset, config, made.seconds


def _begin_as_worker(
    request: Request, out: Path | None, heartbeat_timeout: float, console: Screen, held: ExitStack
) -> tuple[RunFolder, Outcome]:
    """As `_begin`, one of several processes: the leader decides, and all train."""
    with joined(request.asked, request.workers, heartbeat_timeout) as transport:
        mine = None
        if transport.rank == 0:
            machine = probe()
            path = out or _fresh_name()
            folder = held.enter_context(RunFolder.create(path, console.print, workers=started() is not None))
            ledger = Ledger(folder.ledger, since=started())
            dataset, config, expected = _decide(request, folder, ledger, machine, console)
            config = resolve(config, dataset, machine, ledger, console.print, expected)
            mine = (folder.path, config)
        path, config = settle_run(transport, mine)
        if transport.rank != 0:
            machine = probe()
            folder = held.enter_context(RunFolder.create(own_folder(path, transport.rank), console.print))
            ledger = Ledger(folder.ledger, since=started())
            with ledger.clock("data"):
                dataset = prepare(config.data, cache_folder(), say=console.print)
            dataset.tokenizer.save(folder.tokenizer)
        require_same_data(transport, dataset)
        with _view(console, config, machine) as view:
            return folder, begin(config, folder, ledger, dataset, machine, view.say, view.show, transport)


def _go_on(path: Path, step: int | None, moved: Tree, console: Screen, held: ExitStack) -> tuple[RunFolder, Outcome]:
    folder = RunFolder.open(path)
    held.enter_context(folder.held(console.print))
    config = resumed_config(folder, moved)
    ledger = Ledger(folder.ledger)
    with _view(console, config, probe()) as view:
        with ledger.clock("data"):
            dataset = prepare(config.data, cache_folder(), say=view.say)
        return folder, resume(folder, config, ledger, dataset, view.say, view.show, step)


def _go_on_as_worker(
    path: Path, step: int | None, moved: Tree, heartbeat_timeout: float, console: Screen, held: ExitStack
) -> tuple[RunFolder, Outcome]:
    config = resumed_config(RunFolder.open(path), moved)
    start = "from the newest checkpoint" if step is None else f"from the checkpoint of step {step}"
    with joined(without_places(tree(config)), config.workers, heartbeat_timeout, start) as transport:
        folder = RunFolder(own_folder(path, transport.rank))
        folder.path.mkdir(parents=True, exist_ok=True)
        held.enter_context(folder.held(console.print))
        if not folder.begun:  # killed before this worker had begun
            folder.write_config(config)
        ledger = Ledger(folder.ledger, since=started())
        with _view(console, config, probe()) as view:
            with ledger.clock("data"):
                dataset = prepare(config.data, cache_folder(), say=view.say)
            require_same_data(transport, dataset)
            at = common_step(transport, folder) if step is None else step
            return folder, resume(folder, config, ledger, dataset, view.say, view.show, at, transport)


def _begin_elastic(
    request: Request, out: Path | None, terms: Terms, console: Screen, held: ExitStack
) -> tuple[RunFolder, Outcome]:
    """As `_begin`, with workers that come and go: this process decides, starts them and keeps their lighthouse."""
    require_torchft()
    machine, folder = probe(), held.enter_context(RunFolder.create(out or _fresh_name(), console.print))
    ledger = Ledger(folder.ledger, since=terms.since)
    dataset, config, expected = _decide(request, folder, ledger, machine, console)
    threads = config.execution.threads or len(share_of_cores(0, config.workers, available_cores()))
    config = replace(config, execution=replace(config.execution, threads=threads))
    config = resolve(config, dataset, machine, ledger, console.print, expected)
    folder.write_json("environment.json", environment(machine))
    folder.write_config(config, dataset)
    ledger.close()
    with _view(console, config, machine) as view:
        return folder, host_run(config, dataset, folder, view, terms)


def _go_on_elastic(
    path: Path, terms: Terms, moved: Tree, console: Screen, held: ExitStack
) -> tuple[RunFolder, Outcome]:
    require_torchft()
    folder = RunFolder.open(path)
    held.enter_context(folder.held(console.print))
    if folder.read_summary().get("stopped") == "finished":
        raise UsageError(f"{path} has finished: its budget is spent")
    config = resumed_config(folder, moved)
    with _view(console, config, probe()) as view:
        dataset = prepare(config.data, cache_folder(), say=view.say)
        origin = folder.read_origin()
        if origin is not None and origin.data:
            require_same_text(origin.data, dataset, config)
        folder.write_config(config, dataset)
        return folder, host_run(config, dataset, folder, view, terms)


def _conclude(folder: RunFolder, outcome: Outcome, console: Screen) -> None:
    found = outcome.summary
    spent = f"{show_seconds(found['seconds'])}, {show('tokens', found['tokens'])}, {show('flops', found['flops'])}"
    if found.get("workers", 1) > 1:
        sent = found["exchanges"]["sent"] * found["processes"] / found["workers"]
        waited = show_seconds(found["exchanges"]["exposed"])
        spent += f" by {found['workers']} workers; each sent {show('bytes', sent)} and waited {waited} for exchanges"
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
            f" after {found['steps']} steps, {spent}",
        ),
        soft_wrap=True,
    )
    if outcome.sample:
        console.print("sample:", style="bold")
        console.print(outcome.sample, soft_wrap=True)


def _export(folder: RunFolder, console: Screen) -> None:
    """Write RUN/transformers, after the budget's end and outside it: converting is no part of training. Quantised weights
    leave as the numbers they stand for, as no stock class computes with their codes."""
    target = folder.path / "transformers"
    shutil.rmtree(target, ignore_errors=True)  # a run resumed from an earlier step finishes twice
    trained = load_trained(folder.path)
    try:
        plain = folded(trained)
        assert isinstance(plain, Transformer)
        export(plain, folder.tokenizer, target, end=trained.tokenizer.end)
    except UsageError as error:
        console.print(f"not exported to transformers: {error}")
    else:
        names = [one.name for one in trained.applied]
        how = f", with {', '.join(names)} folded into plain weights" if names else ""
        rounded = any(choice.options.get("activations", "none") != "none" for choice in trained.config.edits)
        how += ", activations not rounded" if rounded else ""
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
    add_heartbeat_flag(parser)
    add_noise_scale_flag(parser)
    found, rest = parser.read_with_configuration(words)
    terms = Terms(found.restart, listening(found.listen), time.monotonic())
    # under torchrun all workers write to one terminal; those that `start_workers` starts have a file each
    console = Screen(quiet=not leads() and started() is None)
    if not keep_freed_memory():
        console.print("note: this C library cannot be told to keep freed memory: steps on a CPU are slower")
    keep_compiled_code(cache_folder())
    with ExitStack() as held:  # the lock of the run's folder, to the end
        return _train(words, found, rest, terms, console, held)


def _train(
    words: Sequence[str],
    found: argparse.Namespace,
    rest: Sequence[str],
    terms: Terms,
    console: Screen,
    held: ExitStack,
) -> int:
    if found.resume:
        if found.recipe or found.out or found.noise_scale_of:
            raise UsageError("--resume goes on with a run as it is: give no recipe, --out or --noise-scale-of with it")
        moved = moved_places(rest)
        config = resumed_config(RunFolder.open(found.resume), moved)
        require_device(config.execution)
        _check_elastic(terms, config.transport, found.from_step)
        require_distributed(config.transport)
        if needs_processes(config.workers, config.transport):
            with RunFolder(found.resume).held(console.print):
                pass  # said here where another process is at work there: the first worker will hold it
            return start_workers(words, config.workers, found.resume / "workers")
        if config.transport == "torchft":
            folder, outcome = _go_on_elastic(found.resume, terms, moved, console, held)
        elif is_worker():
            folder, outcome = _go_on_as_worker(
                found.resume, found.from_step, moved, found.heartbeat_timeout, console, held
            )
        else:
            folder, outcome = _go_on(found.resume, found.from_step, moved, console, held)
    else:
        if found.from_step is not None:
            raise UsageError("--from-step goes with --resume RUN")
        request = Request.read(found.recipe, rest, found.noise_scale_of, processes=processes())
        _check_elastic(terms, request.transport)
        require_distributed(request.transport)
        if needs_processes(request.workers, request.transport):
            out = found.out or _fresh_name()
            with RunFolder.create(out, console.print):
                pass  # refused here where it is taken: the first worker will hold it
            named = [] if found.out else ["--out", str(out)]
            return start_workers([*words, *named], request.workers, out / "workers")
        if request.transport == "torchft":
            folder, outcome = _begin_elastic(request, found.out, terms, console, held)
        elif is_worker():
            folder, outcome = _begin_as_worker(request, found.out, found.heartbeat_timeout, console, held)
        else:
            folder, outcome = _begin(request, found.out, console, held)
    if leads():
        _report(folder, outcome, console)
    return 0 if outcome.signal is None else 128 + outcome.signal


def _check_elastic(terms: Terms, transport: str, from_step: int | None = None) -> None:
    if transport == "torchft" and from_step is not None:
        raise UsageError("--from-step: workers that come and go go on from the latest step that any of them has kept")
    if transport != "torchft" and (terms.restart or terms.listen != LOOPBACK):
        raise UsageError(
            f"--restart and --listen go with --transport torchft, whose workers come and go, not with {transport}"
        )


def _report(folder: RunFolder, outcome: Outcome, console: Screen) -> None:
    """What follows a run, for people."""
    _conclude(folder, outcome, console)
    if outcome.stopped == "finished":
        _export(folder, console)
        try:
            console.print(f"report: {write_report([folder.path])}", soft_wrap=True)
        except OSError as error:
            raise ShoestringError(f"the run is whole, its report was not written: {error.strerror}") from None
