"""`shoestring worker`: take part in a run whose workers come and go."""

import os
from collections.abc import Sequence
from pathlib import Path

from shoestring.cli.arguments import Arguments
from shoestring.cli.configuration_help import KEYS


def run(words: Sequence[str]) -> int:
    # before torch is loaded, as it is read then: gloo tells of every connection that ends, which here is nothing unusual
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from shoestring.cli.run_view import RunView
    from shoestring.cli.screen import Screen
    from shoestring.cli.screen_log import shown_on
    from shoestring.config import build, merge, overrides, read_toml
    from shoestring.launch.participant import join
    from shoestring.train.config import RunConfig

    parser = Arguments(
        "worker",
        "Join a run that `shoestring train --transport torchft` has started, from another terminal or machine. The run's token "
        "is taken from $SHOESTRING_TOKEN. The same command again comes back to the run.",
        KEYS,
    )
    parser.add_argument("recipe", type=Path, help="the run's complete recipe: its config.toml")
    parser.add_argument(
        "--lighthouse",
        required=True,
        metavar="HOST:PORT",
        help="the address that the run printed; other machines reach one that was given to it by --listen",
    )
    parser.add_argument("--out", type=Path, help="this worker's folder (default: runs/worker-DATE-TIME)")
    parser.add_argument("--name", help="this worker's name in the run (default: one of its own)")
    parser.add_argument(
        "--with", dest="companions", default="", metavar="NAMES", help="wait for these before the first step"
    )
    found, rest = parser.read_with_configuration(words)
    companions = [name for name in found.companions.split(",") if name]
    config = build(RunConfig, merge(read_toml(found.recipe), overrides(rest)))
    console = Screen()
    with shown_on(console):
        left = join(
            config, found.lighthouse, out=found.out, name=found.name, companions=companions, view=RunView(console)
        )
    summary = left.outcome.summary
    worker = summary["worker"]
    line = f"{left.identity}: {worker['tokens']:,} tokens trained into the run, {worker['tokens_discarded']:,} lost"
    if left.outcome.stopped == "interrupted":
        line = f"left at step {summary['steps']}; {line}"
    elif "heldout_loss" in summary:
        line = f"held-out loss {summary['heldout_loss']:.4f} after {summary['steps']} steps; {line}"
    console.print(line, soft_wrap=True)
    return 0 if left.outcome.signal is None else 128 + left.outcome.signal
