"""What a pass took, divided among the rows that it read."""

from collections.abc import Sequence

from shoestring.budget.charge import FIELDS, Charge
from shoestring.contract.adapter import NamedAdapters
from shoestring.contract.cost import Cost
from shoestring.decode.work import RowWork


def divide_pass(works: Sequence[RowWork], cost: Cost, seconds: float, adapters: NamedAdapters | None) -> None:
    """Note on each row its part of a pass, by its places. What adapters add is of the rows that have them."""
    places = [work.new for work in works]
    for work, share in zip(works, divided(Charge(flops=cost.flops, moved=cost.moved), places), strict=True):
        row, end = work.row, work.row.held + len(work.tokens)
        again = max(0, min(end, row.deepest) - row.held)
        # what was written was counted when it was chosen
        read = max(0, min(end, len(row.request.prompt)) - max(row.held, row.deepest))
        row.charge += share + Charge(read=read, wasted=again, calls=1)
        row.deepest = max(row.deepest, end)
        row.spend("decode" if row.decoding else "prefill", seconds * work.new / sum(places))
    for name, own in ({} if adapters is None else adapters.spent()).items():
        mine = [work for work in works if work.row.request.adapter == name]
        added = divided(Charge(flops=own.flops, moved=own.moved), [work.new for work in mine])
        for work, share in zip(mine, added, strict=True):
            work.row.charge += share


def divided(charge: Charge, shares: Sequence[int]) -> list[Charge]:
    """A charge in whole parts, in proportion to `shares`, that add up to it."""
    total, done, before, parts = sum(shares), 0, Charge(), list[Charge]()
    for share in shares:
        done += share
        upto = Charge(**{name: getattr(charge, name) * done // total for name in FIELDS})
        parts.append(upto + -before)
        before = upto
    return parts
