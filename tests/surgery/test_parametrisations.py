"""Edits that write a matrix in another way: their formulas, and who decays."""

from typing import Any

import torch
from torch import nn

from shoestring.config import Choice
from shoestring.contract.edit import Decision
from shoestring.model import ModelConfig, Transformer
from shoestring.optim import partition
from shoestring.optim.adamw import AdamW
from shoestring.surgery.edits.scale_vectors import ScaledLinear


def model(**more: Any) -> Transformer:
    torch.manual_seed(1)
    sizes = {"layers": 2, "width": 16, "heads": 4, "key_value_heads": 2, "vocabulary": 30, "context": 24}
    made = Transformer(ModelConfig(**sizes | more)).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=parameter.shape[1] ** -0.5)
    return made


def test_scales_of_branches_are_their_formula() -> None:
    torch.manual_seed(0)
    base, x = nn.Linear(5, 6), torch.randn(3, 5)
    made = ScaledLinear(base, torch.rand(5) + 0.5, (2, 1, 3), outputs=True, directions=True)
    with torch.no_grad():
        for parameter in (made.scales, made.magnitudes, made.output_scale):
            assert parameter is not None
            parameter.add_(0.3 * torch.randn_like(parameter))
    assert made.magnitudes is not None
    assert made.output_scale is not None
    wanted = torch.zeros(3, 6)
    for row, branch in enumerate((0, 0, 1, 2, 2, 2)):
        s = made.scales[branch]
        g = made.magnitudes[branch] * s / ((s**2).sum() / 5) ** 0.5
        wanted[:, row] = made.output_scale[row] * ((g * x) @ base.weight[row]) + base.bias[row]
    torch.testing.assert_close(made(x), wanted)


def test_scale_vectors_change_nothing_and_decay_where_a_matrix_follows() -> None:
    made = model()
    tokens = torch.randint(30, (2, 9))
    before = made(tokens).detach()
    one = Choice.of("surgery", "scale_vectors", kind="edit").build()
    made = one.apply(made, one.decide(made, None))
    torch.testing.assert_close(made(tokens), before)
    qkv: Any = made.blocks[0].token_mixer.qkv
    assert qkv.rows == (16, 8, 8)
    groups = partition(made, AdamW).build().param_groups
    decayed = {id(p): group["weight_decay"] > 0 for group in groups for p in group["params"]}
    kinds = {name: decayed.get(id(p)) for name, p in made.named_parameters() if name.startswith("blocks.0")}
    assert kinds["blocks.0.token_mixer.qkv.scales"]
    assert kinds["blocks.0.channel_mixer.gate_up.magnitudes"]
    assert kinds["blocks.0.token_mixer.qkv.output_scale"] is False
    assert kinds["blocks.0.token_mixer.query_norm.weight"] is False
    assert kinds["blocks.0.token_norm.weight"] is None  # it is 1, and not trained
    torch.testing.assert_close(one.fold(made)(tokens), before)
    assert Decision() == one.decide(made, None)
