"""The operators for CUDA tensors as far as a CPU can show it: registered, right in plain torch, re-ordered once."""

import gc
from collections.abc import Callable

import pytest
import torch
from gpu_cases import TYPES, activations, assert_right, integers, ordered, quantised
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.errors import ShoestringError, UsageError
from shoestring.lowbit.format import Quantised
from shoestring.lowbit.gpu import Order, OrderedLinear, choice, grouped_product, operators, order_for_gpu, plain
from shoestring.lowbit.packed_linear import PackedLinear
from shoestring.lowbit.packing import grouped, pack


def layer(rows: int = 40, columns: int = 320, groups: int = 1, layout: str = "ternary1.6") -> PackedLinear:
    codes = torch.randint(-1, 2, (rows, columns), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    return PackedLinear.of(Quantised(codes, torch.rand(rows, groups) + 0.1), layout)


@pytest.mark.parametrize("name", ["ternary_matmul", "integer_matmul", "ordered_matmul"])
def test_a_cuda_tensor_finds_its_product(name: str) -> None:
    keys = ("CUDA", "CompositeExplicitAutograd")
    assert any(torch._C._dispatch_has_kernel_for_dispatch_key(f"shoestring::{name}", key) for key in keys)


@settings(max_examples=40, deadline=None)
@given(case=quantised(), tokens=st.integers(1, 20), dtype=st.sampled_from(TYPES))
def test_plain_torch_of_any_shape(case: tuple[Quantised, str], tokens: int, dtype: torch.dtype) -> None:
    matrix, layout = case
    words, order = ordered(matrix, layout)
    x = activations(tokens, order.columns, dtype)
    found = operators.ordered_matmul(x, words, matrix.scales, order.rows, order.columns)
    assert_right(found, x, matrix.dequantise().double())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", TYPES)
def test_plain_integers(bits: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, held, scales = integers(50, 300, bits)
    x = activations(5, 300, dtype)
    assert_right(operators.integer_product(x, held, scales, 50, 300, bits), x, weight)
    assert_right(plain.integers(x, held, scales, 300, bits), x, weight)
    monkeypatch.setattr(plain, "ROOM", 3000)
    assert_right(plain.integers(x, held, scales, 300, bits), x, weight)


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for groups in (1, 2):
        packed = layer(groups=groups)
        order = Order(40, 320, groups)
        x, words = activations(3, 320, torch.float32), operators.ordered(packed.packed, order, "ternary1.6")
        whole = plain.ternary(x, words, packed.scales, order)
        monkeypatch.setattr(plain, "ROOM", 16 * 320)
        torch.testing.assert_close(plain.ternary(x, words, packed.scales, order), whole)
        monkeypatch.undo()


def test_a_float16_sum_may_leave_float16_before_it_is_scaled() -> None:
    matrix = Quantised(torch.ones(16, 1024, dtype=torch.int8), torch.full((16, 1), 1e-3))
    words, _ = ordered(matrix, "ternary2")
    x = torch.full((1, 1024), 1000.0, dtype=torch.float16)
    found = operators.ordered_matmul(x, words, matrix.scales, 16, 1024)
    assert_right(found, x, matrix.dequantise().double())


def test_torch_accepts_the_operator() -> None:
    matrix = layer()
    words = operators.ordered(matrix.packed, Order(40, 320), "ternary1.6")
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    given = (activations(3, 320, torch.float16), words, matrix.scales, 40, 320)
    torch.library.opcheck(torch.ops.shoestring.ordered_matmul.default, given, test_utils=tests)


def test_nothing_times_a_matrix() -> None:
    words = operators.ordered(layer().packed, Order(40, 320), "ternary1.6")
    assert operators.ordered_matmul(torch.zeros(0, 320), words, layer().scales, 40, 320).shape == (0, 40)


def test_a_matrix_is_reordered_once_for_its_memory() -> None:
    packed, order = layer().packed, Order(40, 320)
    words = operators.ordered(packed, order, "ternary1.6")
    assert operators.ordered(packed, order, "ternary1.6") is words
    assert operators.ordered(packed.detach(), order, "ternary1.6") is words
    packed.copy_(pack(torch.ones(40, 320, dtype=torch.int8), "ternary1.6"))
    changed = operators.ordered(packed, order, "ternary1.6")
    assert changed is not words
    assert not torch.equal(changed, words)
    place = packed.data_ptr()
    del packed
    gc.collect()
    other = layer(rows=16)
    operators.ordered(other.packed, Order(16, 320), "ternary1.6")
    assert place not in operators._ordered or not operators._ordered[place].storage.expired()


def test_what_does_not_fit_is_said() -> None:
    matrix, x = layer(), torch.zeros(2, 320)
    words = operators.ordered(matrix.packed, Order(40, 320), "ternary1.6")

    def refused(call: Callable[[], object], match: str, error: type[ShoestringError] = ShoestringError) -> None:
        with pytest.raises(error, match=match):
            call()

    product = operators.ordered_matmul
    refused(lambda: product(x.double(), words, matrix.scales, 40, 320), "float16, bfloat16 or float32")
    refused(lambda: product(x, words, matrix.scales, 40, 321), "float16, bfloat16 or float32 \\[tokens, 321\\]")
    refused(lambda: product(x, words, matrix.scales.half(), 40, 320), "the scales of 40 rows are float32")
    refused(lambda: product(x, words.to("meta"), matrix.scales, 40, 320), "with a packed matrix on meta")
    refused(lambda: product(x, words, matrix.scales.to("meta"), 40, 320), "with scales on meta")
    refused(lambda: product(x, words[:1], matrix.scales, 40, 320), "in the order of the GPU is int16")


def test_without_triton_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_trouble", {})
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with pytest.warns(RuntimeWarning, match="plain torch on this GPU: Triton is not installed .* it is slow"):
        assert "not installed" in choice.trouble(torch.device("cuda", 0))
    assert choice.kernel_in_use(torch.device("cuda", 0)) == ("torch", "Triton is not installed (pip install triton)")


def test_a_graph_cannot_be_the_first_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_trouble", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ShoestringError, match="once before a CUDA graph is captured"):
        choice.trouble(torch.device("cuda", 0))


def test_an_old_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert choice._found(torch.device("cuda", 0)).startswith("Tesla T4 is older than compute capability 8.0")


@pytest.mark.parametrize("groups", [1, 2])
def test_an_ordered_layer_is_the_packed_one(groups: int) -> None:
    packed = layer(groups=groups)
    made = OrderedLinear.of(packed)
    back = made.packed()
    assert torch.equal(back.packed, packed.packed)
    assert torch.equal(back.scales, packed.scales)
    x = activations(6, 320, torch.bfloat16).view(2, 3, 320)
    found = made(x)
    assert found.shape == (2, 3, 40)
    assert_right(found.view(6, 40), x.view(6, 320), packed.quantised().dequantise().double())


def test_a_model_in_16_bits_keeps_its_scales() -> None:
    first, second = layer(320, 320), layer(40, 320)
    model = torch.nn.ModuleDict({"a": first, "b": torch.nn.Sequential(second, torch.nn.ReLU()), "c": first})
    ordered_model = order_for_gpu(model, "cpu").to(torch.bfloat16)
    assert ordered_model is model
    assert isinstance(model["a"], OrderedLinear)
    assert model["a"] is model["c"]
    assert model["a"].scales.dtype == torch.float32
    assert model["a"].words.dtype == torch.int16
    assert isinstance(model["b"][0], OrderedLinear)  # type: ignore[index]
    assert isinstance(order_for_gpu(layer(), "cpu"), OrderedLinear)


def test_integer_matrices_that_do_not_fit_are_refused() -> None:
    found = operators.integer_product
    _, held, scales = integers(10, 64, 8)
    with pytest.raises(UsageError, match="4 and 8 bits can be multiplied, not of 5"):
        found(torch.zeros(1, 64), held, scales, 10, 64, 5)
    with pytest.raises(ShoestringError, match=r"a 4-bit matrix of 10 x 64 is uint8 \[10, 32\], not int8 \[10, 64\]"):
        found(torch.zeros(1, 64), held, scales, 10, 64, 4)
    with pytest.raises(ShoestringError, match="one scale a row, not 2"):
        found(torch.zeros(1, 64), held, scales.expand(10, 2), 10, 64, 8)
    with pytest.raises(ShoestringError, match="activations on cpu cannot be multiplied with scales on meta"):
        found(torch.zeros(1, 64), held, scales.to("meta"), 10, 64, 8)


@pytest.mark.parametrize("bits", [4, 8])
def test_groups_of_32_in_plain_torch(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "ROOM", 500)  # several slabs of rows
    matrix = grouped.rounded(torch.randn(30, 70), bits)
    packed, weight = grouped.pack(matrix), matrix.values()[:, :70].double()
    for dtype in TYPES:
        x = activations(3, 70, dtype)
        found = grouped_product.grouped_product(x, packed, 30, 70, bits)
        wanted = x.double() @ weight.to(dtype).double().t()  # weights are rounded to the type here
        torch.testing.assert_close(found.double(), wanted, atol=0.02 if dtype != torch.float32 else 1e-4, rtol=2.0**-7)
    with pytest.raises(ShoestringError, match=r"float32 \[tokens, 70\], not torch.float64"):
        grouped_product.grouped_product(x.double(), packed, 30, 70, bits)
    with pytest.raises(ShoestringError, match="in groups is uint8"):
        grouped_product.grouped_product(x, packed[1:], 30, 70, bits)
    assert grouped_product.grouped_product(x[:0], packed, 30, 70, bits).shape == (0, 30)
