"""`shoestring plan`: what a budget buys on this machine, each choice with its reason."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import probe
from shoestring.cli.arguments import Arguments
from shoestring.cli.configuration_help import KEYS
from shoestring.cli.planning import Request, add_noise_scale_flag, prepared, show_plan, tried
from shoestring.config import to_toml


def run(words: Sequence[str]) -> int:
    parser = Arguments("plan", "Decide on a run for a budget and say why, without training.", KEYS)
    parser.add_argument("recipe", nargs="?", type=Path, help="a TOML file; what it leaves open is planned")
    parser.add_argument("--toml", action="store_true", help="print the complete recipe instead")
    add_noise_scale_flag(parser)
    found, rest = parser.read_with_configuration(words)
    request = Request.read(found.recipe, rest, found.noise_scale_of)
    console = Console(stderr=found.toml)

    def say(line: str) -> None:
        console.print(f"  {line}", highlight=False, markup=False)

    dataset = prepared(request, nullcontext(), say)
    machine = probe()
    # what the trial takes is `train`'s own to spend again, save for what is kept: the ledger begins here
    made, config = tried(request, machine, dataset, Ledger(), say)
    if found.toml:
        print(to_toml(config), end="")
    else:
        show_plan(console, request, made, machine)
    return 0
