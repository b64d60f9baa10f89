"""The Triton kernels on the CPU, under Triton's interpreter: run by test_interpreted.py, in a process of its own.

EXAMPLES in the environment is how many products of any shape are tried.
"""

import itertools
import os

import pytest
import torch
from gpu_cases import SEEDS, TYPES, activations, assert_right, integers, ordered, quantised
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from shoestring.lowbit.format import Quantised
from shoestring.lowbit.gpu import launch
from shoestring.lowbit.gpu.config import Config, untuned
from shoestring.lowbit.gpu.grouped_product import launched
from shoestring.lowbit.gpu.order import Order, doubled
from shoestring.lowbit.packing import grouped

assert not launch.COMPILED, "run with TRITON_INTERPRET=1"

CONFIGS = st.builds(
    Config,
    kernel=st.sampled_from(["narrow", "wide"]),
    rows=st.sampled_from([16, 64]),
    warps=st.sampled_from([1, 4]),
    stages=st.just(3),
    splits=st.integers(1, 4),
)


EXAMPLES = int(os.environ.get("EXAMPLES", "10"))
SHAPES = [(1, 1, 1), (18, 65, 2), *([(50, 300, 3), (70, 96, 1), (33, 257, 2)] if EXAMPLES > 10 else [])]
"""Of matrices in groups of 32, with the parts that their columns are divided into: the interpreter takes seconds for each."""
TOKENS = (1, 9, 65)
"""One, some, and more than a block."""


def pairs(turn: int) -> list[tuple[torch.dtype, int]]:
    """(type, tokens): each type and each number once, paired otherwise at each turn; all pairs where there is time."""
    if EXAMPLES > 10:
        return list(itertools.product(TYPES, TOKENS))
    return [(dtype, TOKENS[(place + turn) % 3]) for place, dtype in enumerate(TYPES)]


@settings(max_examples=EXAMPLES, deadline=None, phases=[Phase.explicit, Phase.generate])  # shrinking takes minutes
@given(case=quantised(), tokens=st.integers(1, 64), dtype=st.sampled_from(TYPES), config=CONFIGS, seed=SEEDS)
def test_any_shape(case: tuple[Quantised, str], tokens: int, dtype: torch.dtype, config: Config, seed: int) -> None:
    matrix, layout = case
    words, order = ordered(matrix, layout)
    x = activations(tokens, order.columns, dtype, seed)
    found = launch.product(x, launch.ternary(words, matrix.scales, order), config)
    assert_right(found, x, matrix.dequantise().double(), interpreted=True)


@pytest.mark.parametrize(("tokens", "groups"), [(1, 1), (8, 3), (9, 1), (64, 1), (65, 3)])
def test_the_settings_by_rule(tokens: int, groups: int) -> None:
    codes = torch.randint(-1, 2, (70, 768), dtype=torch.int8, generator=torch.Generator().manual_seed(tokens))
    matrix = Quantised(codes, torch.rand(70, groups) + 0.1)
    words, order = ordered(matrix, "ternary2")
    x = activations(tokens, 768, torch.float16)
    config = untuned(70, order.blocks, tokens, groups > 1, 4)
    found = launch.product(x, launch.ternary(words, matrix.scales, order), config)
    assert_right(found, x, matrix.dequantise().double(), interpreted=True)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (50, 300)])
@pytest.mark.parametrize("kernel", ["narrow", "wide"])
def test_integers(bits: int, rows: int, columns: int, kernel: str) -> None:
    weight, held, scales = integers(rows, columns, bits)
    for dtype in TYPES:
        x = activations(5, columns, dtype)
        matrix = launch.integers(held, scales, rows, columns, bits)
        found = launch.product(x, matrix, Config(kernel, 32, 4, 3, 2))  # type: ignore[arg-type]
        assert_right(found, x, weight, interpreted=True)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "columns", "splits"), SHAPES)
def test_groups_of_32(bits: int, rows: int, columns: int, splits: int) -> None:
    chance = torch.Generator().manual_seed(rows)
    matrix = grouped.rounded(torch.randn(rows, columns, generator=chance) + 0.3, bits)
    weight = matrix.values()[:, :columns].double()
    for dtype, tokens in pairs(SHAPES.index((rows, columns, splits)) + (bits == 8)):
        x = activations(tokens, columns, dtype)
        config = Config("wide", 32, 4, 3, splits)
        found = launched(x, grouped.pack(matrix), rows, columns, bits, config)
        if tokens == 9 or EXAMPLES > 10:
            assert torch.equal(launched(x, grouped.pack(matrix), rows, columns, bits, config), found)
        assert_right(found, x, weight, interpreted=True)


def test_groups_of_32_hold_any_bytes_and_keep_tokens_apart() -> None:
    packed = torch.randint(0, 256, (grouped.packed_bytes(20, 100, 4),), dtype=torch.uint8)
    for block in packed.view(-1, 320):  # scales and minimums of a size that sums can be checked with
        block[256:].view(torch.float16).copy_(torch.randn(32))
    x, config = activations(4, 100, torch.float16), Config("wide", 16, 2, 3, 2)
    clean = launched(x, packed, 20, 100, 4, config)
    assert_right(clean, x, grouped.unpack(packed, 20, 100, 4).values()[:, :100].double(), interpreted=True)
    x[1, 7], x[2, 8] = torch.nan, torch.inf
    found = launched(x, packed, 20, 100, 4, config)
    assert torch.equal(found[[0, 3]], clean[[0, 3]])
    assert not bool(found[1:3].isfinite().any())


def test_random_words_are_trits_too() -> None:
    words = torch.randint(-(2**15), 2**15, (2, 3, 16, 32), dtype=torch.int16)
    order, scales = Order(20, 700), torch.rand(20, 1)
    x = activations(3, 700, torch.float16)
    found = launch.product(x, launch.ternary(words, scales, order), Config("narrow", 32, 2, 3, 2))
    weight = doubled(words, order, torch.float16)[:20].double() / 2 * scales
    assert set(weight.sign().flatten().tolist()) == {-1.0, 0.0, 1.0}
    assert_right(found, x, weight, interpreted=True)


def test_the_same_sums_every_time_and_whatever_the_other_tokens() -> None:
    matrix = Quantised(torch.randint(-1, 2, (20, 1100), dtype=torch.int8), torch.rand(20, 1))
    words, order = ordered(matrix, "ternary1.6")
    held, config = launch.ternary(words, matrix.scales, order), Config("narrow", 32, 2, 3, 2)
    x = activations(6, 1100, torch.float32)
    found = launch.product(x, held, config)
    assert torch.equal(launch.product(x, held, config), found)
    assert torch.equal(launch.product(x[[3]], held, config), found[[3]])


def test_a_token_that_is_not_finite_touches_no_other() -> None:
    matrix = Quantised(torch.randint(-1, 2, (20, 300), dtype=torch.int8), torch.rand(20, 1) + 0.1)
    words, order = ordered(matrix, "ternary2")
    for dtype in TYPES:
        x = activations(4, 300, dtype)
        held, config = launch.ternary(words, matrix.scales, order), Config("wide", 32, 4, 3, 2)
        clean = launch.product(x, held, config)
        x[1, 7], x[2, 8] = torch.nan, torch.inf
        found = launch.product(x, held, config)
        assert torch.equal(found[[0, 3]], clean[[0, 3]])
        assert not bool(found[1:3].isfinite().any())
