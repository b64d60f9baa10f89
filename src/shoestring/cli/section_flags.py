"""The flags of one section of a configuration, `--SECTION.KEY VALUE`, among the other words of a command."""

from collections.abc import Sequence
from typing import TypeVar

from shoestring.config import as_flag, build, overrides

C = TypeVar("C")


def take_section(section: str, kind: type[C], words: Sequence[str]) -> tuple[C | None, list[str]]:
    """(what the flags of the section say, None where there are none; the other words). Raises: UsageError."""
    ours, others = _parted(f"--{section}.", words)
    if not ours:
        return None, others
    return build(kind, overrides(ours)[section], lambda key: as_flag(f"{section}.{key}")), others


def _parted(prefix: str, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the flags that begin so, each with its value, the other words)."""
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
