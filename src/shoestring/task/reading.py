"""Finding an answer in what a model wrote."""

import re

WHOLE = re.compile(r"(?<![\w.])[-+\u2212]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?![\w])", re.ASCII)
"""A number in decimals, thousands parted by commas or not, that is no part of a word."""


def last_line(text: str) -> str:
    """The last line that is not empty, without white space at its ends; '' where there is none."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def last_whole_number(text: str) -> str | None:
    """The last number of a text where it is whole, as Python writes it; None where there is none, or it has a fraction."""
    numbers = WHOLE.findall(text)
    return whole_number(numbers[-1]) if numbers else None


def whole_number(text: str) -> str | None:
    """A whole number as Python writes it, of any length: '-7' of '\u221207' or '-7'; None of anything else."""
    found = re.fullmatch(r"([-+\u2212]?)((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+))", text.strip(), re.ASCII)
    if found is None:
        return None
    digits = found[2].replace(",", "").lstrip("0") or "0"
    return f"-{digits}" if found[1] in ("-", "\u2212") and digits != "0" else digits
