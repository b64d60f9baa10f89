"""Each part against a slow reference written from its paper."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoestring.errors import UsageError
from shoestring.model.attention import Attention
from shoestring.model.gelu import GELU
from shoestring.model.layernorm import LayerNorm
from shoestring.model.norm import RMSNorm
from shoestring.model.parallel import Parallel
from shoestring.model.pre_norm import PreNorm
from shoestring.model.rotary import Rotary, rotate
from shoestring.model.squared_relu import SquaredReLU
from shoestring.model.swiglu import SwiGLU


def turned(x: list[float], position: int, theta: float) -> list[float]:
    """RoPE of one vector, pair by pair."""
    half = len(x) // 2
    y = list(x)
    for i in range(half):
        angle = position / theta ** (2 * i / len(x))
        y[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        y[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return y


@settings(max_examples=25, deadline=None)
@given(half=st.integers(1, 8), start=st.integers(0, 20), theta=st.floats(10, 1e6), seed=st.integers(0, 99))
def test_rotary_turns_each_pair_by_its_angle(half: int, start: int, theta: float, seed: int) -> None:
    x = torch.randn(1, 3, 2, 2 * half, generator=torch.Generator().manual_seed(seed))
    rotary = Rotary(2 * half, 32, theta)
    got = rotate(x, *rotary(start, 3))
    for t in range(3):
        for head in range(2):
            expected = turned(x[0, t, head].tolist(), start + t, theta)
            torch.testing.assert_close(got[0, t, head], torch.tensor(expected), atol=1e-4, rtol=1e-4)
    positions = torch.arange(start, start + 3)[None]
    assert torch.equal(rotate(x, *rotary(0, 3, positions)), got)


def test_rotary_tables_are_not_saved() -> None:
    assert not Rotary(8, 16, 10000.0).state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rmsnorm_is_its_formula(dtype: torch.dtype) -> None:
    norm = RMSNorm(24, epsilon=1e-2).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(5, 24, dtype=dtype) * 3
    wide = x.double()
    expected = norm.weight.double() * wide / (wide.square().mean(-1, keepdim=True) + 1e-2).sqrt()
    tight = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(norm(x), expected.to(dtype), atol=tight, rtol=tight)


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_a_share_of_the_pairs_is_turned_and_the_rest_stays(share: float) -> None:
    x = torch.randn(1, 3, 2, 12)
    got = rotate(x, *Rotary(12, 8, 100.0, share=share)(2, 3))
    turned_pairs = int(12 * share) // 2
    few = torch.cat((x[..., :turned_pairs], x[..., 6 : 6 + turned_pairs]), -1)
    expected = rotate(few, *Rotary(2 * turned_pairs, 8, 100.0)(2, 3))
    torch.testing.assert_close(got[..., :turned_pairs], expected[..., :turned_pairs])
    torch.testing.assert_close(got[..., 6 : 6 + turned_pairs], expected[..., turned_pairs:])
    for start in (0, 6):
        assert torch.equal(got[..., start + turned_pairs : start + 6], x[..., start + turned_pairs : start + 6])


@pytest.mark.parametrize(
    ("scaling", "words"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type 'dynamic': known are linear, llama3, yarn"),
        ({"factor": 2.0}, "rope_type 'None'"),
        ({"rope_type": "linear"}, "of type 'linear' needs 'factor'"),
    ],
)
def test_a_scaling_that_is_not_known_or_not_whole_is_refused(scaling: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Rotary(8, 16, 100.0, scaling=scaling)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layernorm_is_its_formula(dtype: torch.dtype) -> None:
    norm = LayerNorm(24, epsilon=1e-2).to(dtype)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(5, 24, dtype=dtype) * 3 + 1
    centred = x - x.mean(-1, keepdim=True)
    expected = norm.weight * centred / (centred.square().mean(-1, keepdim=True) + 1e-2).sqrt() + norm.bias
    torch.testing.assert_close(norm(x), expected, atol=1e-5, rtol=1e-5)


def attended(mixer: Attention, x: Tensor, rotary: Rotary, sees: Tensor) -> Tensor:
    """Grouped-query attention one head and one query at a time. x: [T, width]; sees: bool [T, T]."""
    heads, shared = mixer.heads, mixer.split[1]
    q, k, v = mixer.qkv(x).view(len(x), -1, mixer.head_width).split(mixer.split, 1)
    cos, sin = rotary(0, len(x))
    q = rotate(mixer.query_norm(q)[None], cos, sin)[0]
    k = rotate(mixer.key_norm(k)[None], cos, sin)[0]
    rows = []
    for t in range(len(x)):
        mixed = []
        for head in range(heads):
            group = head // (heads // shared)
            scores = (k[sees[t], group] @ q[t, head]) / math.sqrt(mixer.head_width)
            mixed.append(scores.softmax(0) @ v[sees[t], group])
        rows.append(torch.cat(mixed))
    return mixer.output(torch.stack(rows))


@pytest.mark.parametrize("shared", [4, 2, 1])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_is_its_formula(shared: int, qk_norm: bool, masked: bool) -> None:
    torch.manual_seed(shared)
    mixer = Attention(20, 4, shared, 6, qk_norm=qk_norm).double()
    rotary = Rotary(6, 16, 10000.0).double()
    x = torch.randn(2, 9, 20, dtype=torch.float64)
    sees = torch.ones(9, 9, dtype=torch.bool).tril()
    if masked:
        sees &= torch.ones(9, 9, dtype=torch.bool).triu(-3)
    got = mixer(x, *rotary(0, 9), sees if masked else None)
    for row in range(2):
        torch.testing.assert_close(got[row], attended(mixer, x[row], rotary, sees))


def test_channel_mixers_are_their_formulas() -> None:
    x = torch.randn(3, 8, dtype=torch.float64)
    gated = SwiGLU(8, 12).double()
    gate, up = gated.gate_up.weight[:12] @ x.T, gated.gate_up.weight[12:] @ x.T
    torch.testing.assert_close(gated(x), (gated.output.weight @ (gate * gate.sigmoid() * up)).T)
    smooth = GELU(8, 12, bias=True).double()
    z = smooth.input.weight @ x.T + smooth.input.bias[:, None]
    inner = z * (1 + (z / math.sqrt(2)).erf()) / 2
    torch.testing.assert_close(smooth(x), (smooth.output.weight @ inner + smooth.output.bias[:, None]).T)
    near = GELU(8, 12, approximate="tanh").double()
    z = near.input.weight @ x.T
    inner = z / 2 * (1 + (math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)).tanh())
    torch.testing.assert_close(near(x), (near.output.weight @ inner).T)
    squared = SquaredReLU(8, 12).double()
    inner = (squared.input.weight @ x.T).clamp(min=0) ** 2
    torch.testing.assert_close(squared(x), (squared.output.weight @ inner).T)


def test_a_parallel_residual_reads_the_stream_twice_and_a_sequential_one_in_turn() -> None:
    x = torch.randn(2, 3, 4)
    assert torch.equal(Parallel(4)(x, torch.sin, torch.cos), x + x.sin() + x.cos())
    assert torch.equal(PreNorm(4)(x, torch.sin, torch.cos), x + x.sin() + (x + x.sin()).cos())


def test_a_wrong_option_is_refused_in_a_plain_loop_too() -> None:
    with pytest.raises(ValueError, match="rope_theta"):
        Attention(8, 2, 2, 4, rope_theta=-1.0)
    with pytest.raises(ValueError, match="epsilon"):
        RMSNorm(8, epsilon=0.0)
