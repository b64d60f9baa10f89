"""Edits that write a matrix in another way: their formulas, and who decays."""

import copy
import functools
from typing import Any

import pytest
import torch
from torch import nn

from shoestring.config import Choice, build
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.objective import At
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.model.rotary import rotate
from shoestring.objective.cross_entropy import plain
from shoestring.optim import partition
from shoestring.optim.adamw import AdamW
from shoestring.optim.sgd import SGD
from shoestring.surgery.edits.scale_vectors import ScaledLinear
from shoestring.train.step import Stepper


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
    made = one.apply(made, one.decide(made, Evidence()))
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
    assert Decision() == one.decide(made, Evidence())


def test_matrices_keep_their_norms_and_the_log_says_how_far_they_turn() -> None:
    made = model()
    with torch.no_grad():
        made.get_submodule("blocks.1.channel_mixer.output").weight.zero_()  # type: ignore[operator]
    one: Any = Choice.of("surgery", "normalize_and_project", kind="edit", zero_radius=0.5).build()
    made = one.apply(made, one.decide(made, Evidence()))
    names = [matrix.name for matrix in made.anatomy().matrices()]
    kept = {name: made.get_submodule(name).weight.detach().clone() for name in names}
    with torch.no_grad():  # a matrix with a norm behind it has no size of its own
        tokens, wide = torch.randint(30, (2, 9)), copy.deepcopy(made)
        wide.get_submodule("blocks.0.token_mixer.qkv").weight.mul_(3)
        torch.testing.assert_close(wide(tokens), made(tokens), atol=1e-4, rtol=1e-4)
    objective = Choice.of("objective", "next_token").build(plain)
    optimizer = partition(made, functools.partial(AdamW, lr=0.1)).build()
    stepper = Stepper(
        made, objective, optimizer, device="cpu", precision="float32", micro_batch=2, clip=1.0, stepped=[one]
    )
    batch = Batch(Inputs(tokens), tokens)
    assert stepper.gradients(batch, At()).figures["effective_rate"] == 0
    stepper.apply(1.0)
    turned = []
    for name in names:
        before, after = kept[name], made.get_submodule(name).weight.detach()
        if before.any():
            assert float(after.norm()) == pytest.approx(float(before.norm()))
            turned.append(float((after - before).norm() / before.norm()))
        else:
            assert 0 < float(after.norm()) <= 0.5 * 4 * (1 + 1e-6)
    rate = stepper.gradients(batch, At(1)).figures["effective_rate"]
    # a matrix of zeros that has arrived is counted from the next step on
    assert rate == pytest.approx(sum(turned) / len(turned), rel=1e-4)


@pytest.mark.parametrize("shared", [4, 2])
def test_heads_with_large_logits_are_clipped_and_others_stay(shared: int) -> None:
    mixer = {"name": "attention", "qk_norm": False, "bias": "qkv"}
    sizes = {"layers": 2, "width": 16, "heads": 4, "key_value_heads": shared, "vocabulary": 30, "context": 24}
    torch.manual_seed(1)
    made = Transformer(build(ModelConfig, {**sizes, "token_mixer": mixer}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    tokens = torch.randint(30, (3, 9))
    documents = torch.tensor([[0] * 4 + [1] * 5]).expand(3, -1)
    batch = Batch(Inputs(tokens, None, documents), tokens)
    attention: Any = made.blocks[1].token_mixer
    q, k = logit_parts(made, batch)
    logits = torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(4 // shared, 2)) / 2
    seen = (documents[:, :, None] == documents[:, None]) & torch.ones(9, 9, dtype=torch.bool).tril()
    largest = logits.masked_fill(~seen[:, None], -torch.inf).amax((0, 2, 3))
    most = float(largest.sort().values[1:3].mean())  # two heads are above it
    one: Any = Choice.of("surgery", "qk_clip", kind="edit", most=most).build()
    made = one.apply(made, one.decide(made, Evidence()))
    objective = Choice.of("objective", "next_token").build(plain)
    stepper = Stepper(
        made,
        objective,
        partition(made, functools.partial(SGD, lr=1e-12)).build(),
        device="cpu",
        precision="float32",
        micro_batch=2,
        clip=1.0,
        stepped=[one],
    )
    stepper.gradients(batch, At())  # not measured
    stepper.apply(1.0)
    before = attention.qkv.weight.detach().clone()
    measured = stepper.gradients(batch, At(1))
    torch.testing.assert_close(attention.largest_logit, largest, rtol=1e-4, atol=1e-4)
    assert measured.figures["largest_logit"] >= float(largest.max()) - 1e-4
    more = measured.spent["model"].flops - stepper.gradients(batch, At(2)).spent["model"].flops
    assert more == 2 * (2 * 27 * 16 * (4 + shared) * 4 + 2 * 27 * 9 * 16)
    stepper.apply(1.0)
    factor = (most / largest).clamp_max(1)
    ratio = (attention.qkv.weight / before).view(4 + 2 * shared, 4, 16).mean((1, 2))
    scale = factor.sqrt() if shared == 4 else factor
    torch.testing.assert_close(ratio[:4], scale, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        ratio[4 : 4 + shared], scale if shared == 4 else torch.ones(shared), rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(ratio[4 + shared :], torch.ones(shared), rtol=1e-3, atol=1e-3)
    assert not one.fold(made).blocks[0].token_mixer._forward_pre_hooks
    with pytest.raises(UsageError, match="qk_norm = false"):
        one.decide(model(), Evidence())


def logit_parts(made: Transformer, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotated queries and keys of the second layer."""
    attention: Any = made.blocks[1].token_mixer
    x = made.read(batch.inputs, tap=["blocks.1.token_norm"]).tapped["blocks.1.token_norm"]
    q, k, _ = attention.qkv(x).unflatten(-1, (-1, 4)).split(attention.split, 2)
    cos, sin = made.rotary(0, 9, None)
    return rotate(q, cos, sin).detach(), rotate(k, cos, sin).detach()
