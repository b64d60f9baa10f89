"""Layers with a running state in the native call: what the modules compute, in any number of pieces, and the state they leave."""

from typing import Any

import pytest
import torch
from torch import Tensor

from shoestring import kernels
from shoestring.config import build
from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Cache
from shoestring.decode.engine import Engine
from shoestring.decode.request import Request
from shoestring.decode.separate_store import TOGETHER
from shoestring.errors import UsageError
from shoestring.kernels.decoder import Decoder
from shoestring.model import ModelConfig
from shoestring.model.native_pass import FEW, NativePass
from shoestring.model.transformer import Transformer

NATIVE = [kernel for kernel in kernels.available() if kernel != "torch"]
pytestmark = pytest.mark.skipif(not NATIVE, reason="the native library was not built")

ATTENTION = [{"at": "1::2", "token_mixer": "attention"}]
SHAPES: dict[str, dict[str, Any]] = {
    "lightning": {"token_mixer": "lightning"},
    "lightning beside attention": {"token_mixer": "lightning", "pattern": ATTENTION},
    "gated_delta": {"token_mixer": {"name": "gated_delta", "taps": 3}},
    "gated_delta beside attention": {"token_mixer": "gated_delta", "pattern": ATTENTION},
    "mamba2": {"token_mixer": {"name": "mamba2", "state": 12, "head": 16}},
    "mamba2 in groups": {"token_mixer": {"name": "mamba2", "groups": 2, "expand": 1.5}, "pattern": ATTENTION},
    "lolcats": {"token_mixer": {"name": "lolcats", "window": 5, "features": 6}, "key_value_heads": 2},
    "lolcats beside attention": {
        "token_mixer": {"name": "lolcats", "window": 3, "qk_norm": False, "bias": "qkv"},
        "pattern": [{"at": "0", "token_mixer": {"name": "attention", "qk_norm": False}}],
        "head_width": 20,
        "key_value_heads": 2,
    },
    "supra": {"token_mixer": {"name": "supra", "qk_norm": False}, "key_value_heads": 2, "head_width": 20},
    "supra beside attention": {"token_mixer": "supra", "pattern": ATTENTION},
    "two kinds": {"token_mixer": "mamba2", "pattern": [{"at": "0", "token_mixer": "lightning"}, *ATTENTION]},
}
PIECES = (8, 1, 1, 3, 1, 2, 6)
"""Tokens of passes: more than a window at first, and in the middle."""


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Any:
    """How many tokens the native decoder was given in each call; the kernel is as before after every test."""
    made, read = list[int](), Decoder.read

    def noted(self: Decoder, x: Tensor, *rest: Any) -> bool:
        done = read(self, x, *rest)
        if done:
            made.append(len(x))
        return done

    monkeypatch.setattr(Decoder, "read", noted)
    yield made
    kernels.choose(None)


def model(**shape: object) -> Transformer:
    """A model away from where it starts."""
    torch.manual_seed(1)
    sizes = {"layers": 4, "width": 32, "heads": 4, "vocabulary": 61, "context": 96}
    made = Transformer(build(ModelConfig, {**sizes, **shape}))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith(("a_log", "dt_bias", "mix")):
                continue
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return made.requires_grad_(False).eval()


@torch.inference_mode()
def read(of: Transformer, rows: int = 2, pieces: tuple[int, ...] = PIECES) -> tuple[Tensor, Cache]:
    """Hidden states of rows read in pieces, and the cache after them."""
    tokens = torch.randint(61, (rows, sum(pieces)), generator=torch.Generator().manual_seed(2))
    cache = of.new_cache(rows, 40)
    return torch.cat([of.read(Inputs(piece), cache).hidden for piece in tokens.split(pieces, 1)], 1), cache


def states(cache: Cache) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in getattr(layer, "tensors", {}).values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_computes_what_the_modules_do(shape: dict[str, Any], dtype: torch.dtype, calls: list[int]) -> None:
    of = model(**shape).to(dtype)
    assert isinstance(of.native, NativePass), of.native
    found, cache = read(of)
    assert calls == [2 * count for count in PIECES]
    kernels.choose("torch")
    wanted, other = read(of)
    if dtype == torch.float32:
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(states(cache), states(other), rtol=1e-4, atol=1e-4)
    else:  # between its products, the library rounds nothing
        exact, _ = read(of.float())
        errors = [float((one.float() - exact).abs().mean()) for one in (found, wanted)]
        assert errors[0] < 1.2 * errors[1]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_all_kernels_and_threads_give_the_same_bits_in_any_pieces(shape: dict[str, Any]) -> None:
    of = model(**shape)
    kernels.choose("plain")
    (wanted, cache), threads = read(of), torch.get_num_threads()
    try:
        for kernel in NATIVE:
            kernels.choose(kernel)
            for count, pieces in ((1, PIECES), (3, (1,) * 6 + (8, 8))):
                torch.set_num_threads(count)
                found, other = read(of, pieces=pieces)
                assert torch.equal(found, wanted), f"{kernel} in {count} threads"
                assert all(map(torch.equal, states(other), states(cache)))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_long_prompt_is_read_in_chunks_and_goes_on_natively(shape: dict[str, Any], calls: list[int]) -> None:
    of, pieces = model(**shape), (FEW + 5, 1, 1)
    found, _ = read(of, pieces=pieces)
    assert calls == [2, 2]
    kernels.choose("torch")
    torch.testing.assert_close(found, read(of, pieces=pieces)[0], rtol=1e-4, atol=1e-4)


def test_a_snapshot_takes_tokens_back_and_an_empty_cache_begins_anew() -> None:
    of, one = model(**SHAPES["mamba2 in groups"]), torch.tensor([[7], [8]])
    with torch.inference_mode():
        _, cache = read(of, pieces=(3,))
        before = cache.snapshot()
        first = of.read(Inputs(one), cache).hidden
        cache.restore(before)
        assert torch.equal(of.read(Inputs(one), cache).hidden, first)
        new = of.new_cache(2, 40)
        start = new.snapshot()
        wanted = of.read(Inputs(one), new).hidden
        new.restore(start)
        assert torch.equal(of.read(Inputs(one), new).hidden, wanted)


def test_what_it_cannot_do_goes_module_by_module(calls: list[int]) -> None:
    of = model(**SHAPES["lightning"])
    with torch.inference_mode():
        of.read(Inputs(torch.tensor([[1, 2, 3]])))  # no cache: in chunks
        assert not calls
    assert model(token_mixer="srwm").native == (
        "blocks.0 has SelfReferential and SwiGLU, where the native decoder knows Attention and SwiGLU"
    )
    sizes = model(token_mixer="lightning", pattern=[{"at": "1", "hidden": 40}])
    assert sizes.native == "the layers of this model have different sizes"


def answers(of: Transformer, rows: int) -> list[tuple[int, ...]]:
    """What an engine writes after prompts of different lengths, and one too long for the native call."""
    engine = Engine(of, rows=rows, tokens=rows * 60)
    prompts = [tuple(range(2, 2 + length)) for length in (3, 1, FEW + 8, 5)]
    finished = engine.run([Request(prompt, max_new_tokens=6) for prompt in prompts])
    return [tuple(answer.tokens) for answer in sorted(finished, key=lambda answer: answer.number)]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_engine_reads_rows_of_any_length_in_one_call(shape: dict[str, Any], calls: list[int]) -> None:
    of = model(**shape)
    together = answers(of, 4)
    assert max(calls) >= 4
    assert together == answers(of, 1)
    kernels.choose("torch")
    assert together == answers(of, 4)


def test_a_store_joins_as_many_tokens_as_a_native_call_takes() -> None:
    assert TOGETHER == FEW


@torch.inference_mode()
def test_joined_caches_go_on_as_they_would_alone() -> None:
    of = model(**SHAPES["two kinds"])
    prompts = [torch.tensor([[1, 2, 3]]), torch.tensor([[4]]), torch.tensor([[5, 6]])]
    caches = [of.new_cache(1, 9 + number) for number in range(3)]
    for prompt, own in zip(prompts, caches, strict=True):
        of.read(Inputs(prompt), own)
    others = [own.take(torch.tensor([0])) for own in caches]
    cache = of.joined(caches, [1, 2, 1])
    assert cache is not None
    found = of.read(Inputs(torch.tensor([[7, 8, 9, 7]]), None, torch.tensor([[0, 1, 1, 2]])), cache).hidden[0]
    assert [own.length for own in caches] == [4, 3, 3]
    pieces = [torch.tensor([[7]]), torch.tensor([[8, 9]]), torch.tensor([[7]])]
    alone = [of.read(Inputs(piece), other).hidden[0] for piece, other in zip(pieces, others, strict=True)]
    assert torch.equal(found, torch.cat(alone))
    assert of.joined(caches, [1, FEW, 1]) is None  # more than the native call takes
    with pytest.raises(UsageError, match="13 tokens do not fit"):
        of.read(
            Inputs(torch.zeros(1, 9, dtype=torch.int64), None, torch.zeros(1, 9, dtype=torch.int64)),
            of.joined(caches, [9]),
        )
