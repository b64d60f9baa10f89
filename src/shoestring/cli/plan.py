"""`shoestring plan`: what a budget buys on this machine, each choice with its reason."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import probe
from shoestring.budget.units import parse_amount, parse_memory, show
from shoestring.cli.arguments import Arguments, whole
from shoestring.cli.configuration_help import KEYS
from shoestring.cli.json_output import add_json_flag, print_json
from shoestring.cli.outlook import learned, say_outlook
from shoestring.cli.parallel_plan import plan_layouts
from shoestring.cli.planning import add_noise_scale_flag, show_plan
from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.cli.simulated import add_simulation_flags, say_simulated, simulated
from shoestring.config import tree
from shoestring.errors import UsageError
from shoestring.explain import commented_toml
from shoestring.launch.request import TrainingRequest, decisions, prepared, tried
from shoestring.plan.pace import MeasuredPaces
from shoestring.plan.sizes import forward_flops_per_token
from shoestring.quantise.footprint import footprint


def tokens(text: str) -> float:
    """The type of a flag that takes a number of tokens."""
    resource, amount = parse_amount(text)
    if resource != "tokens":
        raise UsageError(f"'{text}' is not a number of tokens: write it like 20Mtok")
    return amount


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
    parser.add_argument(
        "--devices",
        type=whole(1, 65536),
        metavar="N",
        help="rank the layouts of so many devices for the recipe's model",
    )
    parser.add_argument("--gpu", metavar="NAME", help="which devices they are: a100, h100 or h200")
    parser.add_argument(
        "--by-rule", action="store_true", help="choose size, batch and rates by rule, whatever earlier runs have taught"
    )
    parser.add_argument(
        "--measure-again", action="store_true", help="time steps anew, where the machine was busy when a plan last did"
    )
    parser.add_argument(
        "--served",
        type=tokens,
        default=0.0,
        metavar="TOKENS",
        help="the budget also pays for so many tokens that the model reads and writes in its life, like 20Mtok",
    )
    parser.add_argument(
        "--fits",
        type=parse_memory,
        metavar="SIZE",
        help="the model takes no more in use, in 8 bits with its cache and activations, like 2MB",
    )
    add_simulation_flags(parser)
    found, rest = parser.read_with_configuration(words)
    if (found.devices is None) != (found.gpu is None):
        raise UsageError("--devices N and --gpu NAME go together: how many devices, and which")
    if found.devices is not None:
        if found.toml or found.learn:
            raise UsageError("--devices ranks layouts: give no --toml and no --learn with it")
        return plan_layouts(found.recipe, rest, found.devices, found.gpu, found.json)
    if found.json and found.toml:
        raise UsageError("--toml and --json are two forms of one plan: give one of them")
    request = TrainingRequest.read(found.recipe, rest, found.noise_scale_of)
    request = replace(request, served=found.served, learns=not found.by_rule, fits=found.fits)
    if found.fits is not None and request.asked.get("model", {}).get("base"):
        raise UsageError("--fits chooses the size of a new model: this one has a base, which has its size")
    console = Screen(stderr=found.toml or found.json)
    with shown_on(console):
        if found.learn:
            learned(found.learn)
        dataset = prepared(request, nullcontext())
        machine = probe()
        # what the trial takes is `train`'s own to spend again, save for what is kept: the ledger begins here
        made, config = tried(
            request, machine, dataset, Ledger(), MeasuredPaces(machine.device, again=found.measure_again)
        )
        foreseen = None if found.toml else simulated(made, config, machine, found.layouts, found.link)
        used = None if found.fits is None or found.toml else footprint(config.model)
    if found.json:
        expected = asdict(replace(made, searched=None))
        expected.pop("decisions")
        expected["searched"] = [] if made.searched is None else [asdict(one) for one in made.searched.found]
        print_json({
            "machine": machine,
            "decisions": decisions(request, made),
            "expected": expected,
            "simulated": foreseen.as_json() if foreseen else None,
            "in_use": None if used is None else {**used._asdict(), "total": used.total},
            "configuration": tree(config),
        })  # fmt: skip
    elif found.toml:
        print(commented_toml(config), end="")
    else:
        show_plan(console, request, made, machine)
        console.print(made.made_by, highlight=False, soft_wrap=True)
        if request.served and not config.model.base:
            kept = show("flops", request.served * forward_flops_per_token(config.model))
            console.print(f"{kept} more are for {show('tokens', request.served)} that it serves", highlight=False)
        if used is not None:
            parts = ", ".join(
                f"{show('bytes', getattr(used, part))} of {part}" for part in ("weights", "cache", "activations")
            )
            console.print(
                f"in use it takes {show('bytes', used.total)}: {parts}; weights in {used.bits} bits", highlight=False
            )
        if foreseen is not None:
            say_simulated(console, made, foreseen)
        say_outlook(console, request, machine, dataset, made, config)
    return 0
