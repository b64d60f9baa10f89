import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from shoestring.config import Choice
from shoestring.model.chunked import chunked_attention
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer


@settings(deadline=None, max_examples=25)
@given(length=st.integers(1, 33), heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]), width=st.sampled_from([2, 8]))
def test_it_is_causal_attention_with_its_gradients(length: int, heads: tuple[int, int], width: int) -> None:
    draw = torch.Generator().manual_seed(length)
    q, k, v = (
        torch.randn(2, h, length, width, generator=draw, requires_grad=True) for h in (heads[0], heads[1], heads[1])
    )
    outer = torch.randn(2, heads[0], length, width, generator=draw)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    found = chunked_attention(q, k, v)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad((y * outer).sum(), (q, k, v)) for y in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_a_model_told_to_use_it_has_the_same_logits(qk_norm: bool) -> None:
    torch.manual_seed(0)
    mixer = Choice.of("model", "attention", kind="token mixer", qk_norm=qk_norm)
    model = Transformer(ModelConfig(2, 32, 4, 2, vocabulary=50, context=24, token_mixer=mixer))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # a new model ignores its context
    inputs = torch.randint(50, (2, 24))
    expected = model(inputs)
    for block in model.blocks:
        block.token_mixer.chunked = True  # type: ignore[union-attr]
    torch.testing.assert_close(model(inputs), expected, atol=1e-5, rtol=1e-5)
