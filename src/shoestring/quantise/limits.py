"""What a target leaves for the matrices of the layers, and what a matrix costs of it at each width."""

from collections.abc import Callable, Mapping, Sequence

from shoestring.contract.anatomy import Matrix
from shoestring.errors import UsageError
from shoestring.quantise.engine import Limits
from shoestring.quantise.format import CodeFormat
from shoestring.quantise.target import BitTarget

Seconds = Callable[[int, int, int], float]
"""(rows, columns, bits) to the seconds of a product with one token."""


def limits_of(
    target: BitTarget, *, format: CodeFormat | None = None, fixed: float = 0.0, seconds: Seconds | None = None
) -> Limits:
    """The limits of a target.

    format: whose bytes are counted; needed for bytes.
    fixed: what everything but these matrices takes, of the target's unit.
    seconds: of a product; needed for seconds.
    """

    def of_bits(matrices: Sequence[Matrix], widths: Sequence[int]) -> tuple[list[list[float]], float, str, float]:
        counts = [one.weight.numel() for one in matrices]
        return [[float(count * bits) for bits in widths] for count in counts], target.amount * sum(counts), "bits", 0.0

    def of_bytes(matrices: Sequence[Matrix], widths: Sequence[int]) -> tuple[list[list[float]], float, str, float]:
        if format is None:
            raise UsageError("bytes are of a format, and none was given")
        sizes = [[float(format.at(bits).size(*one.weight.shape)) for bits in widths] for one in matrices]
        return sizes, target.amount - fixed, "bytes", fixed

    def of_seconds(matrices: Sequence[Matrix], widths: Sequence[int]) -> tuple[list[list[float]], float, str, float]:
        if seconds is None:
            raise UsageError("a time for a token is of products that were measured, and none were")
        known: dict[tuple[int, int, int], float] = {}
        table = []
        for one in matrices:
            rows, columns = one.weight.shape
            row = []
            for bits in widths:
                key = (rows, columns, bits)
                if key not in known:
                    known[key] = seconds(*key)
                row.append(known[key])
            table.append(row)
        return table, target.amount - fixed, "seconds a token", fixed

    chosen: Mapping[str, Limits] = {"bits": of_bits, "bytes": of_bytes, "seconds": of_seconds}
    return chosen[target.unit]
