"""`shoestring compare`: judge any two ways at equal cost."""

import argparse
import datetime
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from rich.table import Table

from shoestring.budget.machine import Machine, cache_folder, probe
from shoestring.cli.arguments import Arguments, whole
from shoestring.cli.configuration_help import KEYS
from shoestring.cli.decoders import add_decoding_flags, check_flags, of_decoding, run_decoders
from shoestring.cli.json_output import add_json_flag, print_json
from shoestring.cli.machine_flag import add_machine_flag
from shoestring.cli.models import add_model_flags, check_model_flags, run_models
from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.compare.conduct import check_alike, check_at_once, conduct
from shoestring.compare.design import Design
from shoestring.compare.folder import ComparisonFolder
from shoestring.compare.recipes import check_workers, parse_tuning, trials
from shoestring.compare.record import RunLog, RunRecord
from shoestring.compare.request import planned_arms, require_two
from shoestring.compare.reuse import Reused, runs_of
from shoestring.compare.runner import Trainer, processes
from shoestring.compare.verdict import Verdict, judge
from shoestring.compare.wording import UNTUNED, rates
from shoestring.config import build, merge, overrides, read_toml
from shoestring.data.prepare import prepare
from shoestring.errors import ShoestringError, UsageError
from shoestring.jobs.runner import Lost, Runner, elsewhere
from shoestring.launch.processes import available_cores
from shoestring.report.comparison_page import write_comparison
from shoestring.train.closing import spent_before
from shoestring.train.config import RunConfig
from shoestring.train.execution import keep_compiled_code

DESCRIPTION = """Judge recipes at equal cost. The first recipe is the base. Each other one is a candidate, and takes what it
leaves open from the base. Every run spends the same budget. Seeds are paired: the same data order, and the same first weights
where the shapes allow. Without --tune each arm runs at the rates it has, and the verdict says so first. Flags of the
configuration (--section.key value) hold for all arms.

Recipes with a section [decode] are ways to decode: the same prompts by each, in turns; the same text, or one as likely within a
margin; judged by the seconds of a written token.

With --models PLACE PLACE, models that exist are compared as they are used: as many bytes or as long a token, held-out loss on the
same bytes of text; what making them took is told apart."""

TUNING_SEED = 9001
"""The seed of tuning trials, outside those that are judged: a setting is not chosen on the runs it is judged by."""


def share(text: str) -> float:
    """'0.5%' or '0.005'. Raises: ValueError."""
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def _arguments() -> Arguments:
    parser = Arguments("compare", DESCRIPTION, KEYS)
    parser.add_argument("recipes", nargs="*", type=Path, metavar="RECIPE", help="TOML files, the base first")
    parser.add_argument(
        "--seeds", type=whole(1, 1000), default=3, help="how many paired seeds (default 3; fewer give no verdict)"
    )
    parser.add_argument("--first-seed", type=whole(0, 2**62), default=0, help="the first seed (default 0)")
    parser.add_argument(
        "--tune",
        action="append",
        default=[],
        metavar="KEY=V1,V2",
        help="every arm tries these values first, and pays for it; '*2' is twice its own value; "
        "'lr' is optim.lr, and with '*' the fallback's rate too",
    )
    parser.add_argument(
        "--until-decided",
        type=whole(2, 1000),
        metavar="N",
        help="add seeds until every verdict is decided, up to N pairs",
    )
    parser.add_argument("--confidence", type=float, default=0.95, help="of intervals and verdicts (default 0.95)")
    parser.add_argument(
        "--margin",
        type=share,
        metavar="SHARE",
        help="also say whether differences above this share of the loss are excluded: 0.5%%",
    )
    parser.add_argument(
        "--at-once",
        type=whole(1, 1024),
        metavar="N",
        help="runs at a time (default 1, and with --on as many as there is room for); not with a budget in seconds",
    )
    add_machine_flag(parser)
    parser.add_argument(
        "--unlike-machines",
        action="store_true",
        help="with --on: compare at equal seconds though the machines are not alike",
    )
    parser.add_argument("--out", type=Path, help="folder of the comparison (default: comparisons/DATE-TIME)")
    parser.add_argument("--keep-runs", action="store_true", help="keep the checkpoints of all runs")
    parser.add_argument(
        "--runs-of",
        type=Path,
        metavar="FOLDER",
        help="take runs from this comparison where configuration, seed and versions are the same",
    )
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with a comparison that was stopped")
    parser.add_argument("--again", type=Path, metavar="FOLDER", help="make all runs of this folder anew, into --out")
    parser.add_argument(
        "--from",
        type=Path,
        dest="source",
        metavar="FOLDER",
        help="judge the figures of this folder again, without running",
    )
    add_decoding_flags(parser, whole)
    add_model_flags(parser, whole, share)
    add_json_flag(parser, "the verdict and where the comparison's files are")
    parser.add_argument("--base", metavar="ARM", help="with --from: judge against this arm; nothing is written")
    return parser


def run(words: Sequence[str]) -> int:
    parser = _arguments()
    found, rest = parser.read_with_configuration(words)
    if found.models:
        return run_models(found, rest)
    check_model_flags(found)
    modes = [name for name in ("resume", "again", "source") if getattr(found, name)]
    if len(modes) > 1 or (modes and (found.recipes or rest)):
        raise UsageError(
            "--resume, --again and --from each take a folder as it is: give no recipes, and no other of the three"
        )
    if found.runs_of and found.source:
        raise UsageError("--runs-of goes with runs to be made, and --from makes none: give one of the two")
    if modes and found.margin is not None:
        raise UsageError("--margin is set before the first run: a folder keeps its own, so leave it out")
    if found.base is not None and not found.source:
        raise UsageError("--base goes with --from; without it the base is the first recipe")
    if found.source and (found.at_once is not None or found.on):
        raise UsageError("--at-once and --on go with runs to be made, and --from makes none: leave them out")
    if found.unlike_machines and not found.on:
        raise UsageError("--unlike-machines goes with --on: here there is one machine")
    if of_decoding(found):
        return run_decoders(found, rest, _fresh_name())
    check_flags(found)
    console = Screen(stderr=found.json)
    if found.source:
        folder = ComparisonFolder.open(found.source)
        design, records = folder.read_design(), RunLog(folder.records).read()
        if found.base is None:
            _conclude(folder, judge(records, design), console, as_json=found.json)
            return 0
        against = judge(records, design.against(found.base)).to_json()
        if found.json:
            print_json({**against, "folder": folder.path})
        _show(against, console)
        console.print(
            f"not written: {found.source} was planned with {design.base} as its base, and keeps that verdict",
            highlight=False,
            soft_wrap=True,
        )
        return 0

    at_work: AbstractContextManager[object]
    keep_compiled_code(cache_folder())
    machine = probe()
    earlier = ComparisonFolder.open(found.runs_of) if found.runs_of else None
    if found.resume:
        folder = ComparisonFolder.open(found.resume)
        design = folder.read_design()
        arms = folder.read_arms(design)
        at_work = folder.held()
        before = runs_of(earlier, design, machine) if earlier else {}
    else:
        if found.again:
            source = ComparisonFolder.open(found.again)
            design = source.read_design()
            arms = source.read_arms(design)
        else:
            arms = _arms(found.recipes, rest, machine, console)
            design = _design(found, arms)
        check_workers(arms)
        before = runs_of(earlier, design, machine) if earlier else {}
        folder = ComparisonFolder(found.out or _fresh_name())
        at_work = ComparisonFolder.create(folder.path)
    with _runner(found, design, arms, console) as runner, shown_on(console), at_work:
        if not found.resume:
            folder.write(design, arms, machine)
        _run(folder, design, arms, machine, before, found, console, runner)
    return 0


@contextmanager
def _runner(
    found: argparse.Namespace, design: Design, arms: Mapping[str, RunConfig], console: Screen
) -> Iterator[Runner]:
    """Who makes the runs. Raises: UsageError where their seconds would not be alike."""
    if not found.on:
        check_at_once(design, found.at_once or 1)
        yield processes(arms, found.at_once or 1)
        return
    threads = [config.execution.threads for config in arms.values()]
    with elsewhere(
        found.on,
        at_once=found.at_once,
        threads=max(threads) if all(threads) else 0,
        gpus=max(int(config.execution.device == "cuda") for config in arms.values()),
        whole_machines=design.unit == "seconds",
    ) as runner:
        machines = runner.machines()
        check_alike(design, machines)
        for one in machines:
            console.print(f"machine: {one.host}, {one.device}, {one.fingerprint}", soft_wrap=True)
        yield runner


def _fresh_name() -> Path:
    return Path("comparisons") / datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")


def _arms(recipes: Sequence[Path], rest: Sequence[str], machine: Machine, console: Screen) -> dict[str, RunConfig]:
    """Complete configurations by name, nothing left to decide. Raises: UsageError."""
    require_two(recipes)
    names = [path.stem for path in recipes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two recipes are named {twice[0]}: an arm goes by its file's name, so rename one")
    flags = overrides(rest)
    asked = {path.stem: merge(read_toml(path), flags) for path in recipes}
    with shown_on(console):
        return planned_arms(asked, machine)


def _design(found: argparse.Namespace, arms: dict[str, RunConfig]) -> Design:
    """Raises: UsageError."""
    limits = next(iter(arms.values())).budget.limits
    if len(limits) != 1 or not limits.keys() <= {"seconds", "flops", "tokens"}:
        raise UsageError("arms are compared at one budget in seconds, FLOPs or tokens: give one limit with --budget")
    ((unit, amount),) = limits.items()
    if found.seeds < 1 or found.first_seed < 0:
        raise UsageError("--seeds takes a number of 1 or more, --first-seed one of 0 or more")
    seeds = list(range(found.first_seed, found.first_seed + found.seeds))
    tuning = parse_tuning(found.tune)
    plain = {
        "arms": list(arms),
        "seeds": seeds,
        "unit": unit,
        "amount": amount,
        "tuning": {name: list(trials(config, tuning)) for name, config in arms.items()} if tuning else {},
        "tuning_seed": TUNING_SEED if TUNING_SEED not in seeds else max(seeds) + 10_000,
        "confidence": found.confidence,
        "margin": found.margin,
        "until_decided": found.until_decided,
        "unlike_machines": found.unlike_machines,
        "charged": {name: spent for name, config in arms.items() if any((spent := spent_before(config)).values())},
    }
    return build(Design, plain)


def _run(
    folder: ComparisonFolder,
    design: Design,
    arms: dict[str, RunConfig],
    machine: Machine,
    before: Mapping[str, RunRecord],
    found: argparse.Namespace,
    console: Screen,
    runner: Runner,
) -> None:
    local = not found.on
    # elsewhere the same corpus must be found: what it holds here is prepared, or taken from the cache
    data = {} if local else {name: prepare(config.data, cache_folder()).fingerprint for name, config in arms.items()}
    trainer = Trainer(arms, folder.runs, runner=runner, data=data, keep_runs=found.keep_runs, places=not local)
    console.print(f"comparison: {folder.path}", soft_wrap=True)
    if not design.tuned:
        console.print(f"{UNTUNED} Here: {rates(arms)}.", soft_wrap=True)
    if local:
        _warn_of_threads(arms, machine, found.at_once or 1, console)
    run = Reused(trainer, before, arms)
    try:
        records = conduct(design, run, RunLog(folder.records))
    except Lost as error:
        raise ShoestringError(f"{error}; the rest is kept: shoestring compare --resume {folder.path}") from None
    except KeyboardInterrupt:
        console.print(f"stopped; go on with: shoestring compare --resume {folder.path}", soft_wrap=True)
        raise
    if found.runs_of:
        console.print(
            f"taken from {found.runs_of}: {len(run.taken) or 'none'} of its {len(before)} finished runs", soft_wrap=True
        )
    _conclude(folder, judge(records, design), console, as_json=found.json)


def _warn_of_threads(arms: Mapping[str, RunConfig], machine: Machine, at_once: int, console: Screen) -> None:
    """Say so where runs at a time have more threads than there are cores."""
    threads = at_once * max(config.execution.threads or machine.threads for config in arms.values())
    cores = len(available_cores())
    if at_once > 1 and threads > cores:
        console.print(
            f"{at_once} runs at once have {threads} threads on {cores} cores, so they wait for each other; "
            "give each fewer with --execution.threads",
            soft_wrap=True,
        )


def _conclude(folder: ComparisonFolder, verdict: Verdict, console: Screen, *, as_json: bool) -> None:
    content = verdict.to_json()
    folder.write_verdict(content)
    _show(content, console)
    report = write_comparison(folder.path)
    console.print(f"report: {report}", soft_wrap=True)
    if as_json:
        print_json({**content, "folder": folder.path, "report": report})


def _show(content: Mapping[str, Any], console: Screen) -> None:
    if not any(arm["tuning"] for arm in content["arms"].values()):
        console.print(UNTUNED, style="bold", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("candidate", "verdict", "nats", "interval", "speed-up", "memory", "step"):
        table.add_column(column, justify="left" if column in ("candidate", "verdict") else "right")
    for row in content["comparisons"]:
        low_high = row["interval"]
        ratio, memory, step = row["speed_up"]["ratio"], row["extra_memory"], row["extra_step_seconds"]
        table.add_row(
            row["candidate"],
            row["verdict"],
            "" if row["difference"] is None else f"{row['difference']:+.4f}",
            f"{low_high[0]:+.4f} to {low_high[1]:+.4f}" if low_high else "",
            "" if ratio is None else f"{ratio:.2f}x",
            "" if memory is None else f"{memory / 1e6:+.0f} MB",
            "" if step is None else f"{step * 1e3:+.1f} ms",
        )
    console.print(table)
    for row in content["comparisons"]:
        console.print(row["sentence"], soft_wrap=True)
        for flag in row["flags"]:
            console.print(f"  note: {flag}", soft_wrap=True)
    for one in content.get("machines", ()):
        console.print(f"made on {one['host']} ({one['device']}, {one['fingerprint']}): {one['runs']}", soft_wrap=True)
    console.print(content["statement"].removeprefix(UNTUNED).strip(), style="bold", soft_wrap=True)
