"""`shoestring train`: train a language model within a budget, or resume a run."""

import datetime
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import Machine, cache_folder, probe
from shoestring.budget.units import show, show_seconds
from shoestring.cli.arguments import Arguments
from shoestring.cli.configuration_help import KEYS
from shoestring.cli.crew import (
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
from shoestring.cli.planning import Request, add_noise_scale_flag, decisions, forbid, prepared, show_plan, tried
from shoestring.config import tree
from shoestring.data.dataset import Dataset
from shoestring.data.prepare import prepare
from shoestring.errors import ShoestringError, UsageError
from shoestring.lowbit.convert import unpack
from shoestring.model.hf import export
from shoestring.plan.planner import flops_per_token
from shoestring.report.page import write_report
from shoestring.sync.processes import available_cores, share_of_cores
from shoestring.train.allocator import keep_freed_memory
from shoestring.train.config import RunConfig
from shoestring.train.execution import keep_compiled_code, require_device
from shoestring.train.lowering import with_planned_tokens
from shoestring.train.run_folder import RunFolder, environment
from shoestring.train.session import Outcome, begin, resolve, resume, start
from shoestring.train.trained import load_trained


def _fresh_name() -> Path:
    now = datetime.datetime.now()
    return Path("runs") / now.strftime("%Y-%m-%d-%H%M%S")


def _view(console: Console, config: RunConfig, machine: Machine) -> LiveView:
    precision = config.execution.precision
    peak = machine.matmul[machine.best_precision if precision == "auto" else precision]
    return LiveView(console, peak, flops_per_token(config.model), config.budget.seconds)


def _begin(request: Request, out: Path | None, console: Console) -> tuple[RunFolder, Outcome]:
    folder = RunFolder.create(out or _fresh_name())
    ledger = Ledger(folder.ledger)
    with ledger.clock("start"):
        machine = probe()
    dataset, config, expected = _decide(request, folder, ledger, machine, console)
    with _view(console, config, machine) as view:
        return folder, start(config, folder, ledger, dataset, machine, view.say, view.show, expected)


def _decide(
    request: Request, folder: RunFolder, ledger: Ledger, machine: Machine, console: Console
) -> tuple[Dataset, RunConfig, float]:
    """The data, the plan laid under what was asked for, and the seconds it expects; shown, and kept in the run's folder."""

    def say(line: str) -> None:
        console.print(f"  {line}", highlight=False, markup=False)

    dataset = prepared(request, ledger.clock("data"), say)
    with ledger.clock("measure"):
        made, config = tried(request, machine, dataset, ledger, say)
        config = with_planned_tokens(config, made.tokens)
        show_plan(console, request, made, machine)
        folder.write_json("decisions.json", decisions(request, made))
        dataset.tokenizer.save(folder.tokenizer)
    console.print(f"run: {folder.path}", highlight=False)
    return dataset, config, made.seconds


def _begin_as_worker(request: Request, out: Path | None, console: Console) -> tuple[RunFolder, Outcome]:
    """As `_begin`, one of several processes: the leader decides, and all train."""
    with joined(request.asked, request.workers) as transport:
        mine = None
        if transport.rank == 0:
            machine = probe()
            folder = RunFolder(out) if started() is not None and out else RunFolder.create(out or _fresh_name())
            ledger = Ledger(folder.ledger, since=started())
            dataset, config, expected = _decide(request, folder, ledger, machine, console)
            config = resolve(config, dataset, machine, ledger, console.print, expected)
            mine = (folder.path, config)
        path, config = settle_run(transport, mine)
        if transport.rank != 0:
            machine = probe()
            folder = RunFolder.create(own_folder(path, transport.rank))
            ledger = Ledger(folder.ledger, since=started())
            with ledger.clock("data"):
                dataset = prepare(config.data, cache_folder(), say=console.print)
            dataset.tokenizer.save(folder.tokenizer)
        require_same_data(transport, dataset)
        with _view(console, config, machine) as view:
            return folder, begin(config, folder, ledger, dataset, machine, view.say, view.show, transport)


def _go_on(path: Path, step: int | None, console: Console) -> tuple[RunFolder, Outcome]:
    folder = RunFolder.open(path)
    config = folder.read_config()
    ledger = Ledger(folder.ledger)
    with _view(console, config, probe()) as view:
        with ledger.clock("data"):
            dataset = prepare(config.data, cache_folder(), say=view.say)
        return folder, resume(folder, config, ledger, dataset, view.say, view.show, step)


def _go_on_as_worker(path: Path, step: int | None, console: Console) -> tuple[RunFolder, Outcome]:
    config = RunFolder.open(path).read_config()
    start = "from the newest checkpoint" if step is None else f"from the checkpoint of step {step}"
    with joined(without_places(tree(config)), config.workers, start) as transport:
        folder = RunFolder(own_folder(path, transport.rank))
        if not (folder.path / "config.toml").is_file():  # killed before this worker had begun
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.write_config(config)
        ledger = Ledger(folder.ledger, since=started())
        with _view(console, config, probe()) as view:
            with ledger.clock("data"):
                dataset = prepare(config.data, cache_folder(), say=view.say)
            require_same_data(transport, dataset)
            at = common_step(transport, folder) if step is None else step
            return folder, resume(folder, config, ledger, dataset, view.say, view.show, at, transport)


def _begin_elastic(request: Request, out: Path | None, terms: Terms, console: Console) -> tuple[RunFolder, Outcome]:
    """As `_begin`, with workers that come and go: this process decides, starts them and keeps their lighthouse."""
    require_torchft()
    machine, folder = probe(), RunFolder.create(out or _fresh_name())
    ledger = Ledger(folder.ledger, since=terms.since)
    dataset, config, expected = _decide(request, folder, ledger, machine, console)
    threads = config.execution.threads or len(share_of_cores(0, config.workers, available_cores()))
    config = replace(config, execution=replace(config.execution, threads=threads))
    config = resolve(config, dataset, machine, ledger, console.print, expected)
    folder.write_config(config)
    folder.write_json("environment.json", environment(machine))
    ledger.close()
    with _view(console, config, machine) as view:
        return folder, host_run(config, dataset, folder, view, terms)


def _go_on_elastic(path: Path, terms: Terms, console: Console) -> tuple[RunFolder, Outcome]:
    require_torchft()
    folder = RunFolder.open(path)
    if (folder.read_json("summary.json") or {}).get("stopped") == "finished":
        raise UsageError(f"{path} has finished: its budget is spent")
    config = folder.read_config()
    with _view(console, config, probe()) as view:
        dataset = prepare(config.data, cache_folder(), say=view.say)
        return folder, host_run(config, dataset, folder, view, terms)


def _conclude(folder: RunFolder, outcome: Outcome, console: Console) -> None:
    found = outcome.summary
    spent = f"{show_seconds(found['seconds'])}, {show('tokens', found['tokens'])}, {show('flops', found['flops'])}"
    if found.get("workers", 1) > 1:
        sent = found["exchanges"]["sent"] * found["processes"] / found["workers"]
        waited = show_seconds(found["exchanges"]["exposed"])
        spent += f" by {found['workers']} workers; each sent {show('bytes', sent)} and waited {waited} for exchanges"
    if outcome.stopped == "interrupted":
        console.print(
            f"stopped at step {found['steps']} after {spent}; go on with: shoestring train --resume {folder.path}",
            highlight=False,
        )
        return
    console.print(
        f"[bold]held-out loss {found['heldout_loss']:.4f} nats per token, {found['bits_per_byte']:.4f} bits per byte[/bold] "
        f"after {found['steps']} steps, {spent}",
        highlight=False,
    )
    if outcome.sample:
        console.print("sample:", style="bold")
        console.print(outcome.sample, highlight=False, markup=False, soft_wrap=True)


def _export(folder: RunFolder, console: Console) -> None:
    """Write RUN/transformers, after the budget's end and outside it: converting is no part of training. Quantised weights
    leave as the numbers they stand for, as no stock class computes with their codes."""
    target = folder.path / "transformers"
    shutil.rmtree(target, ignore_errors=True)  # a run resumed from an earlier step finishes twice
    trained = load_trained(folder.path)
    try:
        unpack(trained.model)
        export(trained.model, folder.tokenizer, target, end=trained.tokenizer.end)
    except UsageError as error:
        console.print(f"not exported to transformers: {error}", highlight=False)
    else:
        lowbit = trained.config.lowbit
        how = f", its {lowbit.format.name} weights as the floats they stand for" if lowbit.on else ""
        how += ", its activations not rounded" if lowbit.beside.activations != "none" else ""
        console.print(f"for transformers: {target}{how}", highlight=False)


def run(words: Sequence[str]) -> int:
    parser = Arguments(
        "train", "Train a language model within a budget. Without a recipe, the plan for the budget is trained.", KEYS
    )
    parser.add_argument("recipe", nargs="?", type=Path, help="a TOML file; what it leaves open is planned")
    parser.add_argument("--out", type=Path, help="the run's folder (default: runs/DATE-TIME)")
    parser.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with a run from its newest checkpoint, exactly"
    )
    parser.add_argument("--from-step", type=int, metavar="STEP", help="with --resume: from this step's checkpoint")
    parser.add_argument("--restart", action="store_true", help="with --transport torchft: start workers that die again")
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help="with --transport torchft: where other machines may join (default: none can)",
    )
    add_noise_scale_flag(parser)
    found, rest = parser.read_with_configuration(words)
    terms = Terms(found.restart, listening(found.listen), time.monotonic())
    # under torchrun all workers write to one terminal; those that `start_workers` starts have a file each
    console = Console(quiet=not leads() and started() is None)
    if not keep_freed_memory():
        console.print("note: this C library cannot be told to keep freed memory: steps on a CPU are slower")
    keep_compiled_code(cache_folder())
    if found.resume:
        if found.recipe or found.out or found.noise_scale_of:
            raise UsageError("--resume goes on with a run as it is: give no recipe, --out or --noise-scale-of with it")
        forbid(
            rest,
            "a resumed run keeps its configuration, its number of workers too; "
            "--start.run RUN begins a new one from its weights",
        )
        config = RunFolder.open(found.resume).read_config()
        require_device(config.execution)
        _check_elastic(terms, config.transport, found.from_step)
        require_distributed(config.transport)
        if needs_processes(config.workers, config.transport):
            return start_workers(words, config.workers, found.resume / "workers")
        if config.transport == "torchft":
            folder, outcome = _go_on_elastic(found.resume, terms, console)
        else:
            folder, outcome = (_go_on_as_worker if is_worker() else _go_on)(found.resume, found.from_step, console)
    else:
        if found.from_step is not None:
            raise UsageError("--from-step goes with --resume RUN")
        request = Request.read(found.recipe, rest, found.noise_scale_of, processes=processes())
        _check_elastic(terms, request.transport)
        require_distributed(request.transport)
        if needs_processes(request.workers, request.transport):
            folder = RunFolder.create(found.out or _fresh_name())
            named = [] if found.out else ["--out", str(folder.path)]
            return start_workers([*words, *named], request.workers, folder.path / "workers")
        if request.transport == "torchft":
            folder, outcome = _begin_elastic(request, found.out, terms, console)
        else:
            folder, outcome = (_begin_as_worker if is_worker() else _begin)(request, found.out, console)
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


def _report(folder: RunFolder, outcome: Outcome, console: Console) -> None:
    """What follows a run, for people."""
    _conclude(folder, outcome, console)
    if outcome.stopped == "finished":
        _export(folder, console)
        try:
            console.print(f"report: {write_report([folder.path])}", highlight=False)
        except OSError as error:
            raise ShoestringError(f"the run is whole, its report was not written: {error.strerror}") from None
