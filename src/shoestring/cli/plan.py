"""`shoestring plan`: what a budget buys on this machine, each choice with its reason."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import probe
from shoestring.cli.arguments import Arguments
from shoestring.cli.configuration_help import KEYS
from shoestring.cli.json_output import add_json_flag, print_json
from shoestring.cli.outlook import learned, say_outlook
from shoestring.cli.planning import add_noise_scale_flag, show_plan
from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.config import tree
from shoestring.errors import UsageError
from shoestring.explain import commented_toml
from shoestring.launch.request import TrainingRequest, decisions, prepared, tried


def run(words: Sequence[str]) -> int:
    parser = Arguments("plan", "Decide on a run for a budget and say why, without training.", KEYS)
    parser.add_argument("recipe", nargs="?", type=Path, help="a TOML file; what it leaves open is planned")
    parser.add_argument("--toml", action="store_true", help="print the complete recipe instead, each key explained")
    add_json_flag(parser, "the plan, what it is expected to cost and the complete configuration")
    add_noise_scale_flag(parser)
    parser.add_argument(
        "--learn",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        default=[],
        help="finished runs that this plan and later ones learn from",
    )
    found, rest = parser.read_with_configuration(words)
    if found.json and found.toml:
        raise UsageError("--toml and --json are two forms of one plan: give one of them")
    request = TrainingRequest.read(found.recipe, rest, found.noise_scale_of)
    console = Screen(stderr=found.toml or found.json)
    with shown_on(console):
        if found.learn:
            learned(found.learn)
        dataset = prepared(request, nullcontext())
        machine = probe()
        # what the trial takes is `train`'s own to spend again, save for what is kept: the ledger begins here
        made, config = tried(request, machine, dataset, Ledger())
    if found.json:
        expected = {key: value for key, value in asdict(made).items() if key != "decisions"}
        decided = decisions(request, made)
        print_json({"machine": machine, "decisions": decided, "expected": expected, "configuration": tree(config)})
    elif found.toml:
        print(commented_toml(config), end="")
    else:
        show_plan(console, request, made, machine)
        say_outlook(console, request, machine, dataset, made, config)
    return 0
