"""`shoestring plan`: what a budget buys on this machine, each choice with its reason."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from shoestring.budget.machine import probe
from shoestring.cli.arguments import Arguments
from shoestring.cli.configuration_help import KEYS
from shoestring.cli.planning import Request, add_noise_scale_flag, planned, prepared, show_plan
from shoestring.cli.screen import Screen
from shoestring.config import to_toml


def run(words: Sequence[str]) -> int:
    parser = Arguments("plan", "Decide on a run for a budget and say why, without training.", KEYS)
    parser.add_argument("recipe", nargs="?", type=Path, help="a TOML file; what it leaves open is planned")
    parser.add_argument("--toml", action="store_true", help="print the complete recipe instead")
    add_noise_scale_flag(parser)
    found, rest = parser.read_with_configuration(words)
    request = Request.read(found.recipe, rest, found.noise_scale_of)
    console = Screen(stderr=found.toml)
    dataset = prepared(request, nullcontext(), lambda line: console.print(f"  {line}"))
    machine = probe()
    made, config = planned(request, machine, dataset, 0.0)
    if found.toml:
        print(to_toml(config), end="")
    else:
        show_plan(console, request, made, machine)
    return 0
