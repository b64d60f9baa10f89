"""`shoestring worker`: take part in a run whose workers come and go."""

import os
from collections.abc import Sequence
from pathlib import Path

from shoestring.cli.arguments import Arguments
from shoestring.cli.configuration_help import KEYS


def run(words: Sequence[str]) -> int:
    # before torch is loaded, as it is read then: gloo tells of every connection that ends, which here is nothing unusual
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from shoestring.cli.taking_part import take_part

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
    return take_part(found.recipe, rest, found.lighthouse, out=found.out, name=found.name, companions=companions)
