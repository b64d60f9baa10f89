"""How many examples property tests look at."""

import os

FEWER = "FEWER_EXAMPLES"
"""The variable by which the number is divided: under sanitizers each example takes many times as long."""


def examples(count: int) -> int:
    """So many, or a part of them; 3 at least."""
    return max(3, count // int(os.environ.get(FEWER, "1")))
