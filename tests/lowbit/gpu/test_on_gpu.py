"""The compiled kernels on a real GPU, through the modules that use them."""

from pathlib import Path

import pytest
import torch
from gpu_cases import SEEDS, TYPES, activations, assert_right, integers, quantised
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.lowbit import gpu
from shoestring.lowbit.format import Quantised
from shoestring.lowbit.gpu import OrderedLinear
from shoestring.lowbit.gpu.table import Key
from shoestring.lowbit.grouped import GroupedLinear
from shoestring.lowbit.packed_embedding import PackedEmbedding
from shoestring.lowbit.packed_linear import PackedLinear
from shoestring.lowbit.packing.grouped import rounded

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]


def test_triton_is_in_use() -> None:
    assert gpu.kernel_in_use() == ("triton", "")


@settings(max_examples=300, deadline=None)
@given(case=quantised(400), tokens=st.integers(1, 64), dtype=st.sampled_from(TYPES), seed=SEEDS)
def test_any_shape(case: tuple[Quantised, str], tokens: int, dtype: torch.dtype, seed: int) -> None:
    matrix, layout = case
    layer = PackedLinear.of(matrix, layout).cuda()
    x = activations(tokens, layer.in_features, dtype, seed).cuda()
    assert_right(layer(x), x, matrix.dequantise().double())


@pytest.mark.parametrize("tokens", [1, 2, 4, 8, 16, 32, 64, 65, 300])
@pytest.mark.parametrize("groups", [1, 16])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_large_matrix(tokens: int, groups: int, dtype: torch.dtype) -> None:
    chance = torch.Generator().manual_seed(tokens)
    codes = torch.randint(-1, 2, (3000, 4096), dtype=torch.int8, generator=chance)
    matrix = Quantised(codes, torch.rand(3000, groups, generator=chance) + 0.1)
    layer = OrderedLinear.of(PackedLinear.of(matrix, "ternary2").cuda())
    x = activations(tokens, 4096, dtype, tokens).cuda()
    found = layer(x)
    assert_right(found, x, matrix.dequantise().double())
    assert torch.equal(layer(x), found), "not the same sums every time"


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (50, 300), (5000, 1024)])
def test_heads(bits: int, rows: int, columns: int) -> None:
    weight, held, scales = integers(rows, columns, bits)
    table = PackedEmbedding(held, scales, rows, columns, bits).cuda()
    for dtype in TYPES:
        for tokens in (1, 5, 300):
            x = activations(tokens, columns, dtype).cuda()
            assert_right(table.logits(x), x, weight)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (50, 300), (5000, 1024)])
def test_groups_of_32(bits: int, rows: int, columns: int) -> None:
    matrix = rounded(torch.randn(rows, columns) + 0.3, bits)
    layer, weight = GroupedLinear.of(matrix, columns).cuda(), matrix.values()[:, :columns].double()
    for dtype in TYPES:
        for tokens in (1, 5, 64, 300):
            x = activations(tokens, columns, dtype).cuda()
            assert_right(layer(x), x, weight)


def test_a_captured_graph_gives_the_same() -> None:
    matrix = Quantised(torch.randint(-1, 2, (500, 2048), dtype=torch.int8), torch.rand(500, 1))
    layer = PackedLinear.of(matrix, "ternary1.6").cuda()
    x = activations(1, 2048, torch.bfloat16).cuda()
    wanted = layer(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = layer(x)
    found.zero_()
    graph.replay()
    assert torch.equal(found, wanted)
    other = activations(1, 2048, torch.bfloat16, seed=1).cuda()
    x.copy_(other)
    graph.replay()
    assert torch.equal(found, layer(other))


def test_a_second_stream_gives_the_same() -> None:
    matrix = Quantised(torch.randint(-1, 2, (500, 4096), dtype=torch.int8), torch.rand(500, 1))
    layer = PackedLinear.of(matrix, "ternary2").cuda()
    x = activations(3, 4096, torch.float16).cuda()
    wanted, side = layer(x), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        found = [layer(x) for _ in range(20)]
    here = [layer(x) for _ in range(20)]
    torch.cuda.synchronize()
    assert all(torch.equal(one, wanted) for one in found + here)


def test_compiled_models_take_it() -> None:
    matrix = Quantised(torch.randint(-1, 2, (64, 512), dtype=torch.int8), torch.rand(64, 1))
    layer = PackedLinear.of(matrix, "ternary2").cuda()
    x = activations(2, 512, torch.bfloat16).cuda()
    torch.testing.assert_close(torch.compile(layer)(x), layer(x))


def test_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    from shoestring.lowbit.gpu import table, tuning

    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    monkeypatch.setattr(table, "_kept", None)
    wanted = [Key(512, 2048, 1, 1), Key(512, 2048, 8, 20), Key(512, 2048, 1, 1, 8), Key(512, 2048, 1, 1, 4)]
    found = tuning.tune(wanted, torch.device("cuda", 0))
    assert list(found) == wanted
    assert not [line for line in said if "wrong" in line]
    assert table.tuned(torch.cuda.get_device_name(0), wanted[0]) == found[wanted[0]]
    test_a_large_matrix(1, 1, torch.bfloat16)
