"""Packed models in one native call: near what the modules compute, the same bits by every kernel and for any company."""

from typing import Any

import pytest
import torch
from same_bits import THREADS
from torch import Tensor

from shoestring.config import build
from shoestring.contract.batch import Inputs
from shoestring.errors import ShoestringError
from shoestring.lowbit import kernels
from shoestring.model import ModelConfig
from shoestring.model.native_pass import NativePass
from shoestring.model.transformer import Transformer
from shoestring.shrink.packed_transformer import PackedTransformer
from shoestring.shrink.rounding import pack, ternaries

NATIVE = [kernel for kernel in kernels.available() if kernel != "torch"]
pytestmark = pytest.mark.skipif(not NATIVE, reason="the native library was not built")

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"key_value_heads": 2},
    "no query-key norm": {"token_mixer": {"name": "attention", "qk_norm": False}},
    "half of each head turned": {"token_mixer": {"name": "attention", "rotary_share": 0.5}},
    "odd sizes": {"width": 36, "heads": 3, "key_value_heads": 1, "head_width": 22, "hidden": 50, "layers": 3},
    "one head wider than the model": {"heads": 1, "head_width": 80},
}


def packed(layout: str = "ternary2", spread: float = 1.0, **shape: object) -> PackedTransformer:
    torch.manual_seed(1)
    config = build(ModelConfig, {"layers": 2, "width": 32, "heads": 4, "vocabulary": 61, "context": 96, **shape})
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=spread * parameter.shape[1] ** -0.5)
    return pack(model, ternaries(model), layout, 8)


@torch.no_grad()
def decoded(model: PackedTransformer, length: int = 40, prompt: int = 5) -> Tensor:
    """Hidden states [length - prompt, width] of the tokens after the prompt, one at a time."""
    tokens = torch.randint(61, (1, length), generator=torch.Generator().manual_seed(2))
    cache = model.new_cache(1, length)
    model.read(Inputs(tokens[:, :prompt]), cache)
    return torch.cat([model.read(Inputs(tokens[:, i : i + 1]), cache).hidden[0] for i in range(prompt, length)])


@pytest.mark.parametrize("layout", ["ternary2", "ternary1.6"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_is_what_the_modules_compute(shape: dict[str, Any], layout: str) -> None:
    model = packed(layout, **shape)
    assert isinstance(model.native, NativePass)
    found = decoded(model)
    kernels.choose("torch")
    wanted = decoded(model)
    # float sums are in another order: where that has one activation rounded to the next int8 the difference is larger
    assert float((found - wanted).abs().median()) < 1e-5
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_all_kernels_give_the_same_bits(shape: dict[str, Any]) -> None:
    model = packed(**shape)
    kernels.choose("plain")
    wanted = decoded(model)
    for kernel in NATIVE:
        kernels.choose(kernel)
        assert torch.equal(decoded(model), wanted), kernel


def test_all_kernels_and_numbers_of_threads_give_the_same_bits() -> None:
    """At sizes at which threads share the products (from 2^17 weights on) and the heads (from 128 places on)."""
    shape = {"layers": 1, "width": 256, "heads": 8, "key_value_heads": 4, "hidden": 768, "context": 160}
    model = packed(**shape)  # type: ignore[arg-type]
    kernels.choose("plain")
    torch.set_num_threads(1)
    wanted = decoded(model, 133, 129)
    for kernel in NATIVE:
        kernels.choose(kernel)
        for threads in THREADS:
            torch.set_num_threads(threads)
            assert torch.equal(decoded(model, 133, 129), wanted), f"{kernel} in {threads} threads"


@pytest.mark.parametrize("spread", [1e-30, 1e-3, 1e3, 1e15])
def test_sizes_far_from_one_stay_finite(spread: float) -> None:
    model = packed(spread=spread)
    found = decoded(model)
    assert found.isfinite().all()
    kernels.choose("torch")
    torch.testing.assert_close(found, decoded(model), rtol=0.05, atol=0.05)


def test_what_is_no_number_stays_so() -> None:
    model = packed()
    model.blocks[0].token_norm.weight[3] = torch.nan  # type: ignore[operator, union-attr]
    assert decoded(model, 8).isnan().all()


def test_a_row_does_not_see_its_company() -> None:
    """Whole prompts, single tokens and other rows beside them: the bits are those of a row that is read token by token."""
    model = packed(key_value_heads=2)
    tokens = torch.randint(61, (3, 20), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole = model.read(Inputs(tokens)).hidden
        cache = model.new_cache(3, 20)
        pieces = [model.read(Inputs(piece), cache).hidden for piece in tokens.split([7, 1, 11, 1], 1)]
        assert torch.equal(torch.cat(pieces, 1), whole)
        for row in range(3):
            alone = model.new_cache(1, 20)
            each = [model.read(Inputs(tokens[row : row + 1, i : i + 1]), alone).hidden for i in range(20)]
            assert torch.equal(torch.cat(each, 1)[0], whole[row])


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (
            {"channel_mixer": "squared_relu", "hidden": 40},
            "Attention and SquaredReLU, where it knows Attention and SwiGLU",
        ),
        ({"residual": "parallel"}, "Parallel, where it knows PreNorm"),
        ({"norm": "layernorm"}, "LayerNorm, where it knows RMSNorm"),
    ],
)
def test_parts_that_it_does_not_know_are_named_and_computed_all_the_same(shape: dict[str, Any], reason: str) -> None:
    model = packed(**shape)
    assert model.native == f"blocks.0 has {reason.replace('it knows', 'the native decoder knows')}"
    found = decoded(model)
    kernels.choose("torch")
    torch.testing.assert_close(found, decoded(model), rtol=0.05, atol=0.05)


def test_what_does_not_fit_is_refused() -> None:
    model = packed()
    with torch.no_grad(), pytest.raises(ShoestringError, match="of another model"):
        model.read(Inputs(torch.tensor([[1]])), packed(layers=3).new_cache(1, 4))
    model.blocks[1].set_submodule("token_mixer.qkv", packed(heads=8).blocks[1].token_mixer.output)  # type: ignore[union-attr, arg-type]
    model.changed()
    assert model.native == "reads is 32 x 32, not 96 x 32"
