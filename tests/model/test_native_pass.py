"""All blocks in one native call: what the modules compute, for rows of any lengths, and never where somebody listens or trains."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shoestring import kernels
from shoestring.config import build
from shoestring.contract.batch import Inputs
from shoestring.decode.engine import Engine
from shoestring.decode.request import Request
from shoestring.decode.store import PagedStore
from shoestring.kernels.decoder import Decoder
from shoestring.lowbit.grouped import GroupedLinear
from shoestring.lowbit.packing import grouped
from shoestring.model import ModelConfig
from shoestring.model.native_pass import FEW, NativePass
from shoestring.model.transformer import Transformer

NATIVE = [kernel for kernel in kernels.available() if kernel != "torch"]
pytestmark = pytest.mark.skipif(not NATIVE, reason="the native library was not built")

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "llama": {"key_value_heads": 2, "token_mixer": {"name": "attention", "qk_norm": False}, "tied": False},
    "qwen2": {"key_value_heads": 1, "token_mixer": {"name": "attention", "qk_norm": False, "bias": "qkv"}},
    "qwen3": {"key_value_heads": 2, "head_width": 24, "token_mixer": {"name": "attention", "epsilon": 1e-5}},
    "biases, half of each head turned": {"token_mixer": {"name": "attention", "bias": "all", "rotary_share": 0.5}},
    "odd sizes": {"width": 36, "heads": 3, "key_value_heads": 1, "head_width": 22, "hidden": 50, "layers": 3},
}
WEIGHTS = ("float32", "bfloat16", "4 bits", "8 bits")


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The shapes that the native decoder was given; the kernel is as before after every test."""
    made, read = list[tuple[int, ...]](), Decoder.read

    def noted(self: Decoder, x: Tensor, *rest: Any) -> bool:
        done = read(self, x, *rest)
        if done:
            made.append(tuple(x.shape))
        return done

    monkeypatch.setattr(Decoder, "read", noted)
    yield made
    kernels.choose(None)


def model(weights: str = "float32", **shape: object) -> Transformer:
    """A model away from where it starts, in weights of one kind."""
    torch.manual_seed(1)
    config = build(ModelConfig, {"layers": 2, "width": 32, "heads": 4, "vocabulary": 61, "context": 96, **shape})
    made = Transformer(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    if weights == "bfloat16":
        return made.to(torch.bfloat16).eval()
    if weights != "float32":
        for name, linear in list(made.named_modules()):
            if isinstance(linear, nn.Linear) and name != "head":
                groups = grouped.rounded(linear.weight, int(weights[0]))
                bias = None if linear.bias is None else linear.bias.detach()
                made.set_submodule(name, GroupedLinear.of(groups, linear.in_features, bias))
        made.changed()
    return made.requires_grad_(False).eval()


@torch.inference_mode()
def ragged(of: Transformer) -> list[Tensor]:
    """Hidden states of three rows that are read in pieces, of different lengths, in the passes of one paged store."""
    store, made = PagedStore(of, 40, 4), torch.Generator().manual_seed(2)
    for row in range(3):
        store.cache.tables[row], store.cache.held[row] = store.cache.pool.match(()), 0
    found = []
    for pieces in ({0: 7, 2: 3}, {0: 1, 1: 9, 2: 4}, {0: 1, 1: 1, 2: 1}, {1: 2}):
        rows = torch.tensor([[row for row, count in pieces.items() for _ in range(count)]])
        for row, count in pieces.items():
            store.cache.pool.extend(store.cache.tables[row], store.cache.held[row] + count)
        ids = torch.randint(61, rows.shape, generator=made)
        found.append(of.read(Inputs(ids, None, rows), store.cache).hidden)
    return found


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_ragged_rows_are_what_the_modules_compute(shape: dict[str, Any], weights: str, calls: list[Any]) -> None:
    of = model(weights, **shape)
    assert isinstance(of.native, NativePass)
    found = ragged(of)
    assert [tokens for tokens, _ in calls] == [10, 14, 3, 2]
    kernels.choose("torch")
    for one, other in zip(found, ragged(of), strict=True):
        assert one.dtype == other.dtype
        if weights == "float32":
            torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)
        else:  # sums are in another order, by which an activation may be rounded the other way
            assert float((one - other).abs().median()) < 0.03
            torch.testing.assert_close(one, other, rtol=0.1, atol=0.15 if weights == "bfloat16" else 0.05)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_all_kernels_and_threads_give_the_same_bits(weights: str) -> None:
    of = model(weights, **SHAPES["odd sizes"])
    kernels.choose("plain")
    wanted, threads = ragged(of), torch.get_num_threads()
    try:
        for kernel in NATIVE:
            kernels.choose(kernel)
            for count in (1, 3):
                torch.set_num_threads(count)
                assert all(map(torch.equal, ragged(of), wanted)), f"{kernel} in {count} threads"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_with_and_without_a_cache_and_in_company_a_row_has_the_same_bits(weights: str, calls: list[Any]) -> None:
    of = model(weights, key_value_heads=2)
    tokens = torch.randint(61, (2, 8), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        whole = of.read(Inputs(tokens)).hidden
        assert torch.equal(of.read(Inputs(tokens[:1])).hidden[0], whole[0])
        if weights != "bfloat16":  # a cache is bfloat16 then, and what is kept beside a pass is not
            cache = of.new_cache(2, 12)
            pieces = [of.read(Inputs(piece), cache).hidden for piece in tokens.split([5, 1, 2], 1)]
            assert torch.equal(torch.cat(pieces, 1), whole)
            assert len(calls) == 5


def test_weights_may_change_and_parts_may_be_replaced(calls: list[Any]) -> None:
    of, tokens = model(), torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before = of.read(Inputs(tokens)).hidden
        of.blocks[1].channel_mixer.output.weight.mul_(2)  # type: ignore[union-attr, operator]
        assert len(calls) == 1
        after = of.read(Inputs(tokens)).hidden
        assert len(calls) == 2
        assert not torch.equal(before, after)
        of.blocks[0].token_mixer.qkv.weight.data = torch.zeros(96, 32)  # type: ignore[union-attr]
        nothing = of.read(Inputs(tokens)).hidden
        assert len(calls) == 2  # what lies elsewhere now is not read where it was
        of.changed()
        torch.testing.assert_close(of.read(Inputs(tokens)).hidden, nothing)
        assert len(calls) == 3
        of.blocks[0].set_submodule("channel_mixer.output", nn.Linear(96, 32))
        of.read(Inputs(tokens))
        assert len(calls) == 3


def test_it_keeps_out_of_the_way_of_those_who_listen_or_train(calls: list[Any]) -> None:
    of, tokens = model().requires_grad_(True), torch.tensor([[1, 2, 3]])
    of.read(Inputs(tokens)).hidden.sum().backward()
    with torch.no_grad():
        of.read(Inputs(tokens), tap=["blocks.1"])
        with torch.autocast("cpu", torch.bfloat16):
            of.read(Inputs(tokens))
        of.read(Inputs(tokens, None, torch.tensor([[0, 0, 1]])))  # documents
        of.read(Inputs(torch.zeros(1, FEW + 1, dtype=torch.int64)))  # numbers are multiplied natively for few tokens
        handle = of.blocks[0].token_mixer.qkv.register_forward_hook(lambda *_: None)  # type: ignore[union-attr]
        of.read(Inputs(tokens))
        handle.remove()
        assert not calls
        of.read(Inputs(tokens))
        assert calls == [(3, 32)]


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"channel_mixer": "squared_relu", "hidden": 40}, "Attention and SquaredReLU, where the native decoder knows"),
        ({"residual": "parallel"}, "Parallel, where the native decoder knows PreNorm"),
        ({"norm": "layernorm"}, "LayerNorm, where the native decoder knows RMSNorm"),
    ],
)
def test_parts_that_it_does_not_know_are_named(shape: dict[str, Any], reason: str) -> None:
    found = model(**shape).native
    assert isinstance(found, str)
    assert found.startswith(f"blocks.0 has {reason}")


def test_an_engine_reads_all_its_rows_natively(calls: list[Any]) -> None:
    engine = Engine(model("4 bits"), rows=2, tokens=60)
    assert len(list(engine.run([Request((1, 2, 3), max_new_tokens=4) for _ in range(3)]))) == 3
    assert len(calls) == engine.passes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_products_with_the_matrix(tied: bool, dtype: torch.dtype) -> None:
    of = model(tied=tied, width=34, heads=1).to(dtype)
    with torch.no_grad():
        reading = of.read(Inputs(torch.randint(61, (2, 5))))
        wanted = reading.hidden.double() @ of.get_output_embeddings().weight.double().T
        near = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(reading.logits().double(), wanted, rtol=near, atol=near)
        assert reading.logits().dtype == dtype
        assert reading.head.logits(reading.hidden[:0]).shape == (0, 5, 61)
    assert of.requires_grad_(True).read(Inputs(torch.tensor([[1]]))).logits().requires_grad
