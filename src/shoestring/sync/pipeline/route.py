"""The parts of a cut model and the orders in which micro-batches pass through them.

With L stages there are L + 2 parts: 0 is what comes before the stages (the embedding), 1 to L are the bodies of the stages,
L + 1 is what comes after (norm, head and loss). The process of stage s (from 0) holds part s + 1; that of stage 0 also
holds part 0, that of stage L - 1 also part L + 1.
"""

from shoestring.errors import UsageError


def owner(part: int, stages: int) -> int:
    """The stage whose process holds a part."""
    return min(max(part - 1, 0), stages - 1)


def parts_of(stage: int, stages: int) -> list[int]:
    """The parts that the process of a stage holds."""
    return [part for part in range(stages + 2) if owner(part, stages) == stage]


def in_order(stages: int) -> list[int]:
    """0, 1, 2 ... L, L + 1."""
    return list(range(stages + 2))


def ends_swapped(stages: int) -> list[int]:
    """The first two stages in each other's place, and the last two: 0, 2, 1, 3 ... L - 2, L, L - 1, L + 1.

    Raises: UsageError with one stage, which has no neighbour, and with three, as the middle one cannot stand at both ends.
    """
    if stages in (1, 3):
        raise UsageError(f"the end stages cannot change places with their neighbours where there are {stages} stages")
    route = in_order(stages)
    route[1], route[2] = 2, 1
    if stages > 2:
        route[-3], route[-2] = stages, stages - 1
    return route
