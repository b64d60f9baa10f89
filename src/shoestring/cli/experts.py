"""`shoestring experts`: cluster a corpus, train an expert on each cluster within one budget, judge them together."""

import datetime
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from rich.table import Table

from shoestring.budget.budget import Budget
from shoestring.budget.machine import cache_folder
from shoestring.budget.units import show, show_seconds
from shoestring.cli.arguments import Arguments, whole
from shoestring.cli.configuration_help import KEYS
from shoestring.cli.json_output import add_json_flag, print_json
from shoestring.cli.planning import forbid
from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.config import Tree, merge, overrides, read_toml
from shoestring.errors import UsageError
from shoestring.experts.conduct import Conducted, conduct
from shoestring.experts.folder import ExpertsFolder
from shoestring.experts.request import planned_experts
from shoestring.train.allocator import keep_freed_memory
from shoestring.train.execution import keep_compiled_code

HELP = """
The [experts] section of a recipe, or --experts.KEY VALUE: allocate (tokens, equal, difficulty), spread, difficulty, seed_share,
temperature, top_k, every, clusters.*, embedding.*.

"""


def _conclude(folder: ExpertsFolder, done: Conducted, console: Screen) -> None:
    if done.stopped == "interrupted":
        console.print(f"stopped; go on with: shoestring experts --resume {folder.path}", soft_wrap=True)
        return
    found = done.summary
    experts = found["experts"]
    table = _table("expert", "size", "documents", "tokens", "trained on", "FLOPs", "words that tell it")
    for expert in experts:
        run = expert["run"]
        spent = f"{run['flops']:.3g}"
        own, trained = show("tokens", expert["tokens"]), show("tokens", run["tokens"])
        words = " ".join(expert["words"][:5])
        table.add_row(expert["name"], expert["size"], str(expert["documents"]), own, trained, spent, words)
    console.print(table)
    table = _table("held-out loss", "all", "bits/byte", *(e["name"] for e in experts), "FLOPs/tok", "experts")
    for name, arm in found["arms"].items():
        domains = [arm["domains"][expert["name"]]["loss"] for expert in experts]
        table.add_row(
            name,
            f"{arm['heldout_loss']:.4f}",
            f"{arm['bits_per_byte']:.4f}",
            *("" if loss is None else f"{loss:.4f}" for loss in domains),
            f"{arm['inference_flops_per_token']:.3g}",
            f"{arm['experts_per_window']:.2f}" if "experts_per_window" in arm else "",
        )
    console.print(table)
    console.print(found["choice"], soft_wrap=True)
    budget = Budget.parse(found["budget"])
    spent = f"{show_seconds(found['seconds'])}, {show('tokens', found['tokens'])}, {show('flops', found['flops'])}"
    shares = ", ".join(f"{share:.1%} of the {unit}" for unit, share in found["spent"].items())
    console.print(f"clusters, seeds and experts together took {spent} of {budget}: {shares}", soft_wrap=True)
    console.print(f"figures: {folder.path / 'summary.json'}", soft_wrap=True)


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="left" if name.startswith("words") else "right", overflow="fold")
    return table


def run(words: Sequence[str]) -> int:
    parser = Arguments(
        "experts",
        "Cluster a corpus by content, train an expert model on each cluster without any exchange between them, all within "
        "one budget, and judge them together on held-out text.",
        HELP + KEYS,
    )
    parser.add_argument("recipe", nargs="?", type=Path, help="a TOML file; what it leaves open is planned")
    parser.add_argument("--experts", type=whole(2, 1024), metavar="N", help="how many (default 4)")
    parser.add_argument("--sizes", help="LAYERSxWIDTH of each expert or of all, as in 2x64,3x96,3x96,4x128")
    parser.add_argument("--parallel", type=whole(1, 1024), metavar="N", help="runs at a time (default 1)")
    parser.add_argument(
        "--dense", action="store_true", help="train one model on everything too, with as much budget again"
    )
    parser.add_argument("--out", type=Path, help="the folder (default: runs/experts-DATE-TIME)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on; what is finished is not done again")
    add_json_flag(parser, "the figures of all experts and where their files are")
    found, rest = parser.read_with_configuration(words)
    console = Screen(stderr=found.json)
    at_work: AbstractContextManager[object]
    keep_freed_memory()
    keep_compiled_code(cache_folder())
    if found.resume:
        if found.recipe or found.out or found.experts or found.sizes or found.dense or found.parallel:
            raise UsageError("--resume goes on with experts as they are: give nothing else with it")
        forbid(rest, "experts that are resumed keep their configuration; begin new ones to change it")
        folder = ExpertsFolder.open(found.resume)
        at_work = folder.held()
    else:
        own: Tree = {"count": found.experts, "parallel": found.parallel}
        own["sizes"] = [size.strip() for size in found.sizes.split(",")] if found.sizes else None
        given = {key: value for key, value in own.items() if value is not None}
        asked = merge(read_toml(found.recipe) if found.recipe else {}, overrides(rest))
        with shown_on(console):
            config = planned_experts(asked, given, dense=found.dense)
        name = datetime.datetime.now().strftime("experts-%Y-%m-%d-%H%M%S")
        folder = ExpertsFolder(found.out or Path("runs") / name)
        at_work = ExpertsFolder.create(folder.path, config)
    with shown_on(console), at_work:
        console.print(f"experts: {folder.path}", soft_wrap=True)
        done = conduct(folder)
        _conclude(folder, done, console)
        if found.json:
            print_json({"stopped": done.stopped, **done.summary, "folder": folder.path})
    return 0 if done.signal is None else 128 + done.signal
