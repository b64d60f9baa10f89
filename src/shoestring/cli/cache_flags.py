"""The flags of a cache, `--cache.KEY VALUE`, of the commands that let models write."""

import argparse
from collections.abc import Sequence

from shoestring.cli.section_flags import take_section
from shoestring.decode.cache_budget import CacheConfig


def add_cache_flags(parser: argparse.ArgumentParser) -> None:
    """Tell of them in a command's help. `take_cache` reads them."""
    parser.add_argument_group(
        "the cache of keys and values",
        "--cache.budget SIZE    of all texts together, as 64MiB; or the share of its tokens that each keeps, as 25%\n"
        "--cache.policy NAME    which tokens stay where not all can: keydiff, say\n"
        "--cache.store NAME     how keys and values are held: int8, say\n"
        "--cache.stride N       places that a text gives up at a time\n"
        "--cache.whole true     prompts are read whole and then cut\n"
        "`shoestring methods` lists policies and stores; an option of one is given as --cache.policy.sinks 4",
    )


def take_cache(words: Sequence[str]) -> tuple[CacheConfig, list[str]]:
    """(what the flags of the cache say, the other words). Raises: UsageError."""
    found, others = take_section("cache", CacheConfig, words)
    return found or CacheConfig(), others
