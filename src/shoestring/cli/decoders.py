"""`shoestring compare` of ways to decode: recipes with a section [decode]."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from shoestring.budget.machine import probe
from shoestring.budget.units import show_seconds
from shoestring.cli.json_output import print_json
from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.compare.decoders import DecodeConfig, Decoders, check_arms
from shoestring.compare.decoding_folder import DecodingFolder, read_prompts
from shoestring.compare.decoding_verdict import judge_rounds, kept
from shoestring.compare.outcome import TEXT, Terms
from shoestring.compare.rounds import RoundLog, Rounds, check_rounds, conduct_rounds
from shoestring.config import Choice, build, merge, overrides, read_toml
from shoestring.errors import UsageError
from shoestring.task import Task

ONLY_HERE = ("prompts", "task", "items", "keep")
"""Flags of a comparison of ways to decode alone."""

ITEMS = 40


def add_decoding_flags(parser: argparse.ArgumentParser, whole: Any) -> None:
    """What ways to decode are compared on. whole: the type of a flag, see `cli.arguments`."""
    group = parser.add_argument_group("ways to decode (recipes with a section [decode])")
    group.add_argument("--prompts", type=Path, metavar="PATH", help="JSON lines with 'prompt', 'question' or 'text'")
    group.add_argument(
        "--task", metavar="NAME", help="problems of this task as prompts; --task.OPTION sets its options"
    )
    group.add_argument("--items", type=whole(1, 10**6), metavar="N", help=f"items at most (default {ITEMS})")
    group.add_argument(
        "--keep",
        metavar="WHAT",
        help="'text' (the default): each text must be the base's; 'loss': as likely within --margin, in nats a token; 'nothing'",
    )


def of_decoding(found: argparse.Namespace) -> bool:
    """Whether ways to decode are asked for, by the folder or the recipes. Raises: UsageError for recipes of both kinds."""
    for folder in (found.resume, found.again, found.source):
        if folder:
            return DecodingFolder.is_one(folder)
    kinds = {"decode" in read_toml(path) for path in found.recipes if path.is_file()}
    if len(kinds) > 1:
        raise UsageError("some recipes have a section [decode] and some have none: compare ways to decode, or to train")
    return kinds == {True}


def check_flags(found: argparse.Namespace) -> None:
    """Raises: UsageError for flags that go with ways to decode, where ways to train are compared."""
    for name in ONLY_HERE:
        if getattr(found, name) is not None:
            raise UsageError(f"--{name} goes with recipes that have a section [decode]: leave it out")


def run_decoders(found: argparse.Namespace, rest: Sequence[str], fresh: Path) -> int:
    """Compare ways to decode, or judge a comparison of them again. fresh: a folder where none is named."""
    for name in ("tune", "until_decided", "keep_runs", "runs_of", "base"):
        if getattr(found, name):
            raise UsageError(f"--{name.replace('_', '-')} goes with ways to train: leave it out")
    if found.at_once is not None or found.on or found.unlike_machines:
        raise UsageError(
            "--at-once and --on go with ways to train: decoders that run beside each other take each other's time"
        )
    screen = Screen(stderr=found.json)
    if found.source or found.resume:
        folder = DecodingFolder(found.source or found.resume)
        rounds, arms = folder.read_rounds(), {}
        if found.resume:
            arms = folder.read_arms(rounds)
            with shown_on(screen), folder.held():
                _conduct(folder, rounds, arms, folder.read_prompts(), screen)
        _conclude(folder, rounds, screen, as_json=found.json)
        return 0
    if found.again:
        source = DecodingFolder(found.again)
        rounds, prompts = source.read_rounds(), source.read_prompts()
        arms = source.read_arms(rounds)
    else:
        flags = overrides(rest)
        options = flags.pop("task", {})
        arms = _arms(found.recipes, flags)
        prompts = _prompts(found, options, next(iter(arms.values())).rows)
        rounds = _rounds(found, arms, prompts)
    with shown_on(screen), DecodingFolder.create(found.out or fresh) as folder:
        bench = Decoders(arms, prompts, likelihood=rounds.terms.keep not in (None, TEXT))
        folder.write(rounds, arms, prompts, probe())
        _conduct(folder, rounds, arms, prompts, screen, bench)
        _conclude(folder, rounds, screen, as_json=found.json)
    return 0


def _conduct(
    folder: DecodingFolder,
    rounds: Rounds,
    arms: Mapping[str, DecodeConfig],
    prompts: Sequence[str],
    screen: Screen,
    bench: Decoders | None = None,
) -> None:
    screen.print(f"comparison: {folder.path}", soft_wrap=True)
    bench = bench or Decoders(arms, prompts, likelihood=rounds.terms.keep not in (None, TEXT))
    try:
        conduct_rounds(rounds, bench, RoundLog(folder.rounds))
    except KeyboardInterrupt:
        screen.print(f"stopped; go on with: shoestring compare --resume {folder.path}", soft_wrap=True)
        raise


def _arms(recipes: Sequence[Path], flags: Mapping[str, Any]) -> dict[str, DecodeConfig]:
    """The ways to decode by name, each with what it leaves open from the base. Raises: UsageError."""
    if len(recipes) < 2:
        raise UsageError("a comparison needs two recipes or more: give the base first, then the candidates")
    base, arms = dict[str, Any](), dict[str, DecodeConfig]()
    for path in recipes:
        tree = merge(read_toml(path), flags)
        other = sorted(tree.keys() - {"decode"})
        if other or not isinstance(tree.get("decode"), dict):
            raise UsageError(
                f"{path}: a way to decode has a section [decode] alone" + (f", not {other[0]}" if other else "")
            )
        base = base or tree["decode"]
        whole = {
            key: value for key, value in merge(base, tree["decode"]).items() if value not in ("none", {"name": "none"})
        }
        if path.stem in arms:
            raise UsageError(f"two recipes are named {path.stem}: an arm goes by its file's name, so rename one")
        arms[path.stem] = build(DecodeConfig, whole, lambda key: f"--decode.{key}")
    check_arms(arms)
    return arms


def _prompts(found: argparse.Namespace, options: Mapping[str, Any], rows: int) -> list[str]:
    """Raises: UsageError."""
    if (found.prompts is None) == (found.task is None):
        raise UsageError("ways to decode are compared on prompts: give --prompts PATH or --task NAME, one of them")
    count = (found.items or ITEMS) * rows
    if found.prompts is not None:
        prompts = read_prompts(found.prompts)[:count]
    else:
        task: Task = Choice.of("task", found.task, kind="task", **options).build()
        prompts = [problem.prompt for problem in task.problems("test", 0, count)]
    whole = len(prompts) // rows * rows
    if not whole:
        raise UsageError(f"there are {len(prompts)} prompts, fewer than an item has: decode.rows = {rows}")
    return prompts[:whole]


def _rounds(found: argparse.Namespace, arms: Mapping[str, DecodeConfig], prompts: Sequence[str]) -> Rounds:
    """Raises: UsageError."""
    keep = None if found.keep == "nothing" else found.keep or TEXT
    if keep not in (None, TEXT, "loss"):
        raise UsageError(f"--keep {found.keep}: keep 'text', 'loss' or 'nothing'")
    seeds = tuple(range(found.first_seed, found.first_seed + found.seeds))
    terms = Terms("seconds/written", "ratio", keep=keep, margin=found.margin)
    rows = next(iter(arms.values())).rows
    return Rounds(tuple(arms), seeds, len(prompts) // rows, terms, found.confidence)


def _conclude(folder: DecodingFolder, rounds: Rounds, screen: Screen, *, as_json: bool) -> None:
    done = RoundLog(folder.rounds).read()
    check_rounds(rounds, done)
    verdict = judge_rounds([outcome for each in done for outcome in each.outcomes], rounds)
    content = verdict.to_json()
    folder.write_verdict(content)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    columns = ("seconds/written", "flops/written", "moved/written", "wasted/written")
    for column in ("arm", *columns):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for name, figures in verdict.arms.items():
        cells = ["" if column not in figures else f"{figures[column]:.3g}" for column in columns[1:]]
        table.add_row(name, show_seconds(figures["seconds/written"]) if figures else "", *cells)
    screen.print(table)
    for one in content["comparisons"]:
        screen.print(one["sentence"], soft_wrap=True, style="bold")
        for flag in one["flags"]:
            screen.print(f"  note: {flag}", soft_wrap=True)
    screen.print(f"kept: {kept(rounds)}. verdict: {folder.verdict}", soft_wrap=True)
    if as_json:
        print_json({**content, "folder": folder.path})
