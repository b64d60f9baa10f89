"""The flags of a cache, `--cache.KEY VALUE`, of the commands that let models write."""

import argparse
from collections.abc import Sequence

from shoestring.config import as_flag, build, overrides
from shoestring.decode.cache_budget import CacheConfig

PREFIX = "--cache."


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
    ours, others = parted(words, PREFIX)
    tree = overrides(ours).get("cache", {})
    return build(CacheConfig, tree, lambda key: as_flag(f"cache.{key}")), others


def parted(words: Sequence[str], prefix: str) -> tuple[list[str], list[str]]:
    """(the flags of this prefix with their values, the other words)."""
    ours, others, queue = list[str](), list[str](), list(words)
    while queue:
        word = queue.pop(0)
        if word == "--":
            others += [word, *queue]
            break
        if not word.startswith(prefix):
            others.append(word)
            continue
        ours.append(word)
        if "=" not in word and queue and not queue[0].startswith("--"):
            ours.append(queue.pop(0))
    return ours, others
