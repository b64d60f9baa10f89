"""The flags of experts that do not all lie in memory, `--experts.KEY VALUE`, of the commands that let models write."""

import argparse
from collections.abc import Sequence

from shoestring.cli.section_flags import take_section
from shoestring.decode.expert_store import ExpertConfig


def add_expert_flags(parser: argparse.ArgumentParser) -> None:
    """Tell of them in a command's help. `take_experts` reads them."""
    parser.add_argument_group(
        "experts on less memory, of models that have some",
        "--experts.memory SIZE   that experts take in memory, as 64MiB; or the share of each layer's, as 25%\n"
        "--experts.policy NAME   which are in memory, and which are fetched ahead: lru (default) or expert_flow\n"
        "--experts.folder PATH   where the file with all of them lies\n"
        "`shoestring methods` lists policies; an option of one is given as --experts.policy.guesses 4",
    )


def take_experts(words: Sequence[str]) -> tuple[ExpertConfig, list[str]]:
    """(what the flags of experts say, the other words). Raises: UsageError."""
    found, others = take_section("experts", ExpertConfig, words)
    return found or ExpertConfig(), others
