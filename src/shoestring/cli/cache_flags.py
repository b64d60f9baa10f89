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
        "--cache.budget SIZE (64MiB, of all texts together) or SHARE (25%, of its tokens that each text keeps); "
        "--cache.policy NAME, which tokens stay (keydiff, window, h2o, snapkv, lazy_eviction, random); "
        "--cache.store NAME, how they are held (plain, int8, int4, disk); --cache.stride N, places given up at a time; "
        "--cache.whole true, prompts are cut once, at their end. Options of a method: --cache.policy.sinks 4. "
        "`shoestring methods keydiff` explains one",
    )


def take_cache(words: Sequence[str]) -> tuple[CacheConfig, list[str]]:
    """(what the flags of the cache say, the other words). Raises: UsageError."""
    ours, others, queue = list[str](), list[str](), list(words)
    while queue:
        word = queue.pop(0)
        if word == "--":
            others += [word, *queue]
            break
        if not word.startswith(PREFIX):
            others.append(word)
            continue
        ours.append(word)
        if "=" not in word and queue and not queue[0].startswith("--"):
            ours.append(queue.pop(0))
    tree = overrides(ours).get("cache", {})
    return build(CacheConfig, tree, lambda key: as_flag(f"cache.{key}")), others
