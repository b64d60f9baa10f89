import copy
from typing import Any

import pytest
import torch
from reference_adam_mini import adam_mini
from torch import Tensor, nn

from shoestring.errors import UsageError
from shoestring.model.attention import Attention
from shoestring.optim.adam_mini import AdamMini
from shoestring.optim.adamw import AdamW
from shoestring.optim.row_blocks import mark_heads, row_blocks

OPTIONS: dict[str, Any] = {"lr": 0.05, "beta1": 0.9, "beta2": 0.8, "epsilon": 1e-8, "weight_decay": 0.1}


def train(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], gradients: list[list[Tensor]]) -> None:
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


def marked(rows: int, columns: int, *blocks: tuple[int, int]) -> nn.Parameter:
    parameter = nn.Parameter(torch.randn(rows, columns))
    if blocks:
        parameter.row_blocks = blocks  # type: ignore[attr-defined]
    return parameter


@pytest.mark.parametrize(
    ("shape", "blocks", "heights"),
    [
        ((6, 4), (), [1] * 6),
        ((6, 4), ((6, 3),), [3, 3]),
        ((10, 3), ((6, 3), (2, 2), (2, 1)), [3, 3, 2, 1, 1]),
        ((2, 6, 4), (), [1] * 12),
        ((2, 6, 4), ((4, 2), (2, 1)), [2, 2, 1, 1] * 2),
        ((5,), (), [5]),
    ],
)
def test_agrees_with_the_reference_block_by_block(shape: tuple[int, ...], blocks: tuple, heights: list[int]) -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape))
    if blocks:
        parameter.row_blocks = blocks  # type: ignore[attr-defined]
    gradients = [torch.randn(shape) * 10**step for step in range(-3, 2)]
    before = parameter.detach().clone()
    optimizer = AdamMini([parameter], **OPTIONS)
    train(optimizer, [parameter], [[gradient] for gradient in gradients])
    flat = (lambda x: x.reshape(-1)) if len(shape) == 1 else (lambda x: x.reshape(-1, shape[-1]))
    place = 0
    for height in heights:
        rows = slice(place, place + height)
        place += height
        own = [flat(gradient)[rows].flatten().tolist() for gradient in gradients]
        expected = adam_mini(flat(before)[rows].flatten().tolist(), own, **OPTIONS)
        found = flat(parameter.detach())[rows].flatten()
        torch.testing.assert_close(found.double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-5)
    assert len(optimizer.state[parameter]["second"]) == len(heights)


def test_with_a_block_for_every_number_it_is_adam() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(7, 1), [[torch.randn(7, 1)] for _ in range(5)]
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    train(AdamMini([ours], **OPTIONS), [ours], gradients)
    train(AdamW([theirs], **OPTIONS), [theirs], gradients)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_bfloat16_weight_is_rounded_once() -> None:
    """A decay of 1e-3 alone is lost in bfloat16; with the step it is not."""
    torch.manual_seed(0)
    start, gradient = torch.randn(64, 64).bfloat16(), torch.randn(64, 64).bfloat16()
    options = {"lr": 0.01, "weight_decay": 0.1}
    rounded, exact = nn.Parameter(start.clone()), nn.Parameter(start.float())
    train(AdamMini([rounded], **options), [rounded], [[gradient]])
    train(AdamMini([exact], **options), [exact], [[gradient]])
    assert torch.equal(rounded, exact.bfloat16())


def test_attention_marks_its_heads_and_keeps_the_marks() -> None:
    attention = Attention(32, 4, 2, 8)
    blocks = ((48, 8), (16, 1))
    assert row_blocks(attention.qkv.weight) == blocks
    assert row_blocks(attention.output.weight) == ((32, 1),)
    assert row_blocks(attention.to(torch.bfloat16).qkv.weight) == blocks
    assert row_blocks(attention.half().qkv.weight) == blocks
    attention.load_state_dict(copy.deepcopy(attention.state_dict()))
    assert row_blocks(attention.qkv.weight) == blocks


def test_a_deep_copy_is_marked_anew() -> None:
    """Torch copies no attribute of a weight; the layer's own mark is what is left."""
    twin = copy.deepcopy(Attention(32, 4, 2, 8))
    assert row_blocks(twin.qkv.weight) == ((64, 1),)
    assert mark_heads(twin) == 1
    assert row_blocks(twin.qkv.weight) == ((48, 8), (16, 1))


def test_marks_the_heads_of_a_model_of_transformers() -> None:
    from transformers import AutoModelForCausalLM, Qwen3Config

    settings = Qwen3Config(
        vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(settings)
    assert mark_heads(model) == 4
    weights = dict(model.named_parameters())
    assert row_blocks(weights["model.layers.1.self_attn.q_proj.weight"]) == ((32, 8),)
    assert row_blocks(weights["model.layers.1.self_attn.k_proj.weight"]) == ((16, 8),)
    assert row_blocks(weights["model.layers.1.self_attn.v_proj.weight"]) == ((16, 1),)
    optimizer = AdamMini(model.parameters())
    model(input_ids=torch.arange(6)[None], labels=torch.arange(6)[None]).loss.backward()
    optimizer.step()
    taken = sum(x.nbytes for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor))
    assert taken == AdamMini.state_bytes(model.parameters())
    assert taken < 0.54 * sum(8 * p.numel() for p in model.parameters())


def test_what_cannot_be_marked_is_refused() -> None:
    with pytest.raises(UsageError, match="Linear has no query and key weights"):
        mark_heads(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="ModuleDict does not say how wide its heads are"):
        mark_heads(nn.ModuleDict({"q_proj": nn.Linear(2, 2)}))
    for blocks in (((4, 2),), ((6, 4),), ((6, 0),)):
        with pytest.raises(ValueError, match="does not divide the 6 rows"):
            AdamMini([marked(6, 2, *blocks)])
