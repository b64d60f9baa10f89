"""Command-line arguments that end in one clear line and exit status 2 when they are wrong."""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from shoestring.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from shoestring.base.opened import Weights


def whole(at_least: int, at_most: int) -> Callable[[str], int]:
    """The type of a flag that takes a whole number between two, both allowed."""

    def read(text: str) -> int:
        try:
            found = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text[:40]}' is not a whole number") from None
        if not at_least <= found <= at_most:
            raise argparse.ArgumentTypeError(f"{text[:40]} is not between {at_least} and {at_most}")
        return found

    return read


def seconds_above_zero(text: str) -> float:
    """The type of a flag that takes a number of seconds above 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds above 0")
    return seconds


DTYPES = ("float32", "bfloat16", "float16")
"""Types that weights are opened or written in."""


TYPES_HELP = "of weights: float32, bfloat16, float16, or packed, as a GGUF file has them"


def dtype_named(text: str) -> "Weights":
    """The type of a flag that takes the type of weights: one of DTYPES, or 'packed'."""
    import torch

    from shoestring.base.opened import PACKED

    if text == PACKED:
        return PACKED
    if text not in DTYPES:
        known = (*DTYPES, PACKED)
        raise argparse.ArgumentTypeError(f"'{text[:40]}' is no type of weights: {did_you_mean(text, known)}")
    found: torch.dtype = getattr(torch, text)
    return found


class Arguments(argparse.ArgumentParser):
    """argparse, with its complaints raised as `UsageError` and the nearest flag named."""

    def __init__(self, command: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"shoestring {command}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def read(self, words: Sequence[str], *, mixed: bool = False) -> argparse.Namespace:
        """Parse, refusing what is unknown. mixed: a list of positional words may go on after flags."""
        parse = self.parse_known_intermixed_args if mixed else self.parse_known_args
        found, unknown = parse(words)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            word = unknown[0].partition("=")[0]
            raise UsageError(f"unknown argument '{unknown[0]}': {did_you_mean(word, flags)}")
        return found

    def read_with_configuration(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parse; the flags that are not this command's own, with the word after each, are keys of the configuration."""
        own_flags = {flag: action for action in self._actions for flag in action.option_strings}
        own: list[str] = []
        configuration: list[str] = []
        queue = list(words)
        while queue:
            word = queue.pop(0)
            flag, equals, _ = word.partition("=")
            target = configuration if word.startswith("--") and flag not in own_flags else own
            target.append(word)
            takes_value = target is configuration or (word in own_flags and own_flags[word].nargs is None)
            if takes_value and not equals and queue and not queue[0].startswith("--"):
                target.append(queue.pop(0))
        return self.read(own), configuration
