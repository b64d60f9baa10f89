"""How a product is shared out on a GPU: the settings of a kernel, what is taken untuned, and what tuning tries."""

from dataclasses import dataclass
from typing import Literal

from shoestring.errors import ShoestringError

Kernel = Literal["narrow", "wide"]

TOKEN_BLOCKS = (8, 16, 32, 64)
"""Tokens that a program works on. More tokens than the last are several programs, each of which reads the matrix."""


@dataclass(frozen=True)
class Config:
    """rows: of the matrix, that a program works on. warps, stages: of a program; stages are steps copied ahead, and one.
    splits: parts of the columns. Raises: ShoestringError for what no kernel can be made with."""

    kernel: Kernel
    rows: int
    warps: int
    stages: int
    splits: int

    def __post_init__(self) -> None:
        powers = all(isinstance(n, int) and n > 0 and n & (n - 1) == 0 for n in (self.rows, self.warps))
        counts = all(isinstance(n, int) and n > 0 for n in (self.stages, self.splits))
        if self.kernel not in ("narrow", "wide") or not powers or not counts or self.rows < 16 or self.warps > 16:
            raise ShoestringError(f"no kernel has the settings {self}")

    @property
    def slices(self) -> int:
        """Blocks that a program works on at once."""
        return self.warps if self.kernel == "narrow" else 1


def token_block(tokens: int) -> int:
    """The smallest of TOKEN_BLOCKS that holds them, or the last."""
    return next((size for size in TOKEN_BLOCKS if tokens <= size), TOKEN_BLOCKS[-1])


def shares(blocks: int, config: Config) -> tuple[int, int]:
    """(blocks of a split, splits that are not empty): whole steps of the kernel each, but for the last."""
    wanted = -(-blocks // min(config.splits, blocks))
    share = -(-wanted // config.slices) * config.slices
    return share, -(-blocks // share)


def untuned(rows: int, blocks: int, tokens: int, grouped: bool, processors: int) -> Config:
    """Settings by rule, for a GPU of that many multiprocessors: about two programs for each, of four steps at least.

    Chosen by reckoning (registers, shared memory and instructions of the compiled kernels, activations read for each
    weight), not by timing: tuning does that. grouped: several scales a row, whose second sums take registers.
    """
    size = token_block(tokens)
    if size == 8:
        return _filled("narrow", 64, 4, 3, rows, blocks, tokens, 2 * processors, 4)
    if size >= 32 and rows >= 8192 and not grouped:
        return _filled("wide", 256, 8, 3, rows, blocks, tokens, 2 * processors, 4)
    return _filled("wide", 64 if grouped else 128, 4, 3, rows, blocks, tokens, 2 * processors, 4)


def grouped_by_rule(rows: int, groups: int, tokens: int, processors: int) -> Config:
    """Settings of the kernel for groups of 32 columns, by reckoning: about two programs a multiprocessor, of eight groups."""
    return _filled("wide", 64, 4, 4, rows, groups, tokens, 2 * processors, 8)


def candidates(rows: int, blocks: int, tokens: int, grouped: bool, processors: int) -> list[Config]:
    """What tuning tries, `untuned` first: at most some twenty, each of which takes a second or two to compile."""
    size = token_block(tokens)
    shapes: list[tuple[Kernel, int, int, int]] = [("wide", 64, 4, 4)]
    if size <= 16:
        shapes += [("narrow", 32, 4, 3), ("narrow", 64, 4, 3), ("narrow", 32, 8, 3)]
    if not grouped:
        shapes += [("wide", 128, 4, 4), ("wide", 256, 8, 3)]
    found = [untuned(rows, blocks, tokens, grouped, processors)]
    for shape in shapes:
        found += [_filled(*shape, rows, blocks, tokens, waves * processors, 2) for waves in (1, 2, 4)]
    return list(dict.fromkeys(found))


def _filled(
    kernel: Kernel, height: int, warps: int, stages: int, rows: int, blocks: int, tokens: int, programs: int, least: int
) -> Config:
    """As many splits as make that many programs, each of at least `least` steps."""
    whole = -(-rows // height) * -(-tokens // token_block(tokens))
    steps = blocks // (warps if kernel == "narrow" else 1)
    return Config(kernel, height, warps, stages, max(1, min(programs // whole, steps // least)))
