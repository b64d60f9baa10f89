"""Mixtures of experts: cut along their axes, by slopes that are the loss's own; and made of dense layers."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.config import build
from shoestring.contract.cost import Shape
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.shrink.shares import share_for
from shoestring.shrink.target import Target, size_of
from shoestring.surgery.edits.mini_moe import MiniMoE
from shoestring.surgery.edits.slim_moe import SlimMoE
from shoestring.surgery.pruning import cut
from tests.surgery.test_every_pruning import SIZES, evidence, logits, made

MOE = {"name": "moe", "experts": 4, "expert_hidden": 12, "shared": 1}


def mixtures(**changes: Any) -> Transformer:
    torch.manual_seed(1)
    model = Transformer(build(ModelConfig, {**SIZES, "layers": 2, "channel_mixer": {**MOE, **changes}}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("output.weight"):
                parameter.normal_(std=0.3)
    return model


def mixer(model: Transformer, layer: int) -> Any:
    return model.blocks[layer].channel_mixer


@pytest.mark.parametrize(("kind", "size"), [("expert", 4), ("expert_hidden", 12)])
def test_another_order_changes_nothing(kind: str, size: int) -> None:
    model = mixtures()
    before, weight = logits(model), mixer(model, 1).input.weight.clone()
    cut(model, kind, 1, list(reversed(range(size))))
    assert not torch.equal(weight, mixer(model, 1).input.weight)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)


def test_features_count_as_the_loss_hangs_on_them() -> None:
    model = mixtures().double()
    one, of = SlimMoE(expert_hidden=0.5, multiple=2), evidence()

    def loss(model: Transformer) -> float:
        text = torch.cat([batch.inputs.values for batch in of.text])
        with torch.no_grad():
            return float(F.cross_entropy(model(text).flatten(0, 1), text.flatten(), reduction="sum"))

    slopes = torch.zeros(4, 12, dtype=torch.float64)
    weight = mixer(model, 0).output.weight
    for expert in range(4):
        for feature in range(12):
            ends = []
            for factor in (1 + 1e-4, 1 - 1e-4):
                kept = weight.detach().clone()
                with torch.no_grad():
                    weight[expert, :, feature] *= factor
                ends.append(loss(model))
                with torch.no_grad():
                    weight.copy_(kept)
            slopes[expert, feature] = (ends[0] - ends[1]) / 2e-4
    decision = one.decide(model, of)
    order = decision.tensors["0.features"]
    for expert in range(4):
        stay = slopes[expert].abs().argsort(descending=True)[:6]
        assert order[expert, :6].tolist() == sorted(stay.tolist())
        assert sorted(order[expert].tolist()) == list(range(12))

    whole: dict[str, Tensor] = {n: p.detach().clone() for n, p in model.named_parameters()}
    small: Any = one.apply(model, decision)
    for expert in range(4):  # each keeps its own, gates, values and outputs alike
        for place, feature in enumerate(order[expert, :6].tolist()):
            theirs = whole["blocks.0.channel_mixer.input.weight"][expert]
            ours = mixer(small, 0).input.weight[expert]
            assert torch.equal(ours[place], theirs[feature])
            assert torch.equal(ours[6 + place], theirs[12 + feature])
            column = whole["blocks.0.channel_mixer.output.weight"][expert, :, feature]
            assert torch.equal(mixer(small, 0).output.weight[expert, :, place], column)


def test_what_is_cut_is_what_the_configuration_says() -> None:
    model, size = mixtures(), sum(p.numel() for p in mixtures().parameters())
    one = SlimMoE(expert_hidden=0.5, experts=0.75, heads=0.5, multiple=2)
    small: Any = one.apply(model, one.decide(model, evidence()))
    assert (mixer(small, 0).experts, mixer(small, 0).output.weight.shape[2], small.config.heads) == (3, 6, 2)
    again = Transformer(small.config)
    again.load_state_dict(small.state_dict())
    torch.testing.assert_close(logits(again), logits(small))
    assert sum(p.numel() for p in small.parameters()) < 0.75 * size


def test_a_mixture_comes_down_to_a_target() -> None:
    model, target, axes = mixtures(), Target.parse("0.7x"), ("expert_hidden", "heads")
    share, planned = share_for(model, target, axes, 2, whole=size_of(model), measure=size_of)
    one = SlimMoE(expert_hidden=share, heads=share, multiple=2)
    small = one.apply(copy.deepcopy(model), one.decide(model, evidence()))
    assert size_of(small).parameters == planned.parameters <= 0.7 * size_of(model).parameters


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(UsageError, match="no experts"):
        SlimMoE(expert_hidden=0.5).decide(made("llama"), evidence())
    model = mixtures()
    few = SlimMoE(experts=0.25)
    with pytest.raises(UsageError, match="goes to 2 experts, so 1"):
        few.apply(model, few.decide(model, evidence()))
    with pytest.raises(UsageError, match="gated layers"):
        MiniMoE().decide(made("gpt_neox"), evidence())


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_minimal_experts_cost_what_the_dense_layers_did(family: str) -> None:
    model = made(family)
    with torch.no_grad():
        whole = logits(model)
    dense, size = model.cost(Shape(1, 8)).flops, sum(p.numel() for p in model.parameters())
    one = MiniMoE(experts=4)
    student: Any = one.apply(model, one.decide(model, evidence()))
    assert student.cost(Shape(1, 8)).flops == dense + 2 * 8 * 3 * 4 * 32  # the routers' products
    assert sum(p.numel() for p in student.parameters()) > 1.8 * size
    away = (logits(student) - whole).norm() / whole.norm()
    assert float(away) < 0.05
    loss = student(torch.arange(12).view(1, 12)).logsumexp(-1).sum()
    loss.backward()
    assert float(mixer(student, 0).router.gate.weight.grad.abs().max()) > 0  # the router learns from the loss
