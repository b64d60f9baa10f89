"""Matrices that lose weights while they train: the pattern, what is drawn to zero, and what a checkpoint holds."""

from typing import Any

import pytest
import torch
from torch import nn

from shoestring.config import Choice
from shoestring.contract.edit import Evidence, Stepped
from shoestring.contract.objective import At
from shoestring.model import ModelConfig, Transformer
from shoestring.surgery.edits.cast import CAST
from shoestring.surgery.edits.progressive_gradient_flow import DecayingLinear, ProgressiveGradientFlow
from shoestring.surgery.edits.sparse_schedule import SparseSchedule
from shoestring.surgery.masking import kept_of, largest_of_groups, masked, zeros

PATTERNS: dict[str, tuple[dict[str, Any], int, int]] = {
    "sparse_schedule": ({"sparsity": 0.5}, 0, 0),
    "cast": ({}, 2, 4),
    "progressive_gradient_flow": ({"keep": 1, "group": 8}, 1, 8),
}
"""Options, and weights that stay, of how many; 0: any half."""


def made() -> Transformer:
    torch.manual_seed(1)
    model = Transformer(ModelConfig(layers=2, width=16, heads=2, vocabulary=30, context=12))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=0.3)
    return model


def steps(name: str, progress: list[float], model: Transformer) -> Any:
    one: Any = Choice.of("surgery", name, kind="edit", **PATTERNS[name][0]).build()
    assert issubclass(type(one), Stepped)
    one.apply(model, one.decide(model, Evidence()))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for number, at in enumerate(progress):
        model(torch.arange(10)[None]).logsumexp(-1).sum().backward()
        one.before_step(model, At(number, at))
        optimiser.step()
        one.after_step(model, At(number, at))
        optimiser.zero_grad()
    return one


@pytest.mark.parametrize("name", PATTERNS)
def test_at_the_end_the_pattern_is_there(name: str) -> None:
    model = made()
    one = steps(name, [0.0, 0.2, 0.4, 0.6, 0.8, 0.9], model)
    found = model(torch.arange(10)[None])
    plain = one.fold(model)
    torch.testing.assert_close(plain(torch.arange(10)[None]), found)
    _, keep, group = PATTERNS[name]
    for block in plain.blocks:
        for layer in (m for m in block.modules() if isinstance(m, nn.Linear)):
            assert type(layer) is nn.Linear
            assert not list(layer.buffers())
            there = (layer.weight != 0).float()
            if keep:
                assert there.unflatten(-1, (-1, group)).sum(-1).max() == keep
            assert float(there.mean()) == pytest.approx(keep / group if keep else 0.5, abs=0.02)
    assert zeros([plain]) > 0.3


@pytest.mark.parametrize("name", PATTERNS)
def test_a_checkpoint_holds_the_mask(name: str) -> None:
    first, second = made(), made()
    one = steps(name, [0.1, 0.5, 0.9], first)
    one.apply(second, one.decide(second, Evidence()))
    second.load_state_dict(first.state_dict())
    ids = torch.arange(10)[None]
    assert torch.equal(first(ids), second(ids))
    for a, b in zip(first.buffers(), second.buffers(), strict=True):
        assert torch.equal(a, b)


def test_the_schedule_is_its_formula_and_what_is_gone_stays_gone() -> None:
    one, model = SparseSchedule(sparsity=0.4), made()
    assert one.at(0.25) == 0
    assert one.at(0.5) == pytest.approx(0.4 * (1 - 0.5**3))
    assert one.at(0.9) == pytest.approx(0.4)
    one.apply(model, one.decide(model, Evidence()))
    (layer, *_), before = list(masked(model)), None
    for progress in (0.3, 0.5, 0.7, 0.8):
        sizes = layer.weight.detach().abs().clone()
        one.after_step(model, At(0, progress))
        kept = kept_of(layer).clone()
        share = 1 - float(kept.float().mean())
        assert one.at(progress) - 0.4 / 20 - 0.01 <= share <= one.at(progress) + 1e-9
        assert sizes[kept].min() >= sizes[~kept].max()
        if before is not None:
            assert not bool((kept & ~before).any())
        before = kept
        with torch.no_grad():
            layer.weight.add_(torch.randn_like(layer.weight))  # as an optimiser moves what is gone
            layer.weight.mul_(kept)


def test_cast_pulls_what_is_outside_and_keeps_the_size_of_rows() -> None:
    one, model = CAST(decay=0.5, until=0.8), made()
    one.apply(model, one.decide(model, Evidence()))
    layer = next(masked(model))
    layer.weight.grad = torch.randn_like(layer.weight)
    before = layer.weight.grad.clone()
    one.before_step(model, At(progress=0.4))
    outside = ~largest_of_groups(layer.weight, 2, 4)
    wanted = before + outside * layer.weight.detach().sign() * before.abs().mean() * 0.5 * 0.4 / 0.8
    torch.testing.assert_close(layer.weight.grad, wanted)
    size = layer.weight.detach().abs().sum(1)
    one.after_step(model, At(progress=0.8))
    torch.testing.assert_close(layer.weight.detach().abs().sum(1), size)
    assert torch.equal(layer.weight != 0, ~outside)


def test_gradients_of_what_is_left_out_fade() -> None:
    plain = nn.Linear(8, 4)
    layer = DecayingLinear.of(plain, 2, 4)
    assert layer.weight is plain.weight
    x = torch.randn(3, 8)
    kept = largest_of_groups(layer.weight, 2, 4)
    for beta in (1.0, 0.25, 0.0):
        layer.remaining.fill_(beta)
        layer.weight.grad = None
        y = layer(x)
        y.sum().backward()
        share = torch.where(kept, 1.0, beta)
        torch.testing.assert_close(y, x @ (plain.weight * share).T + plain.bias)
        torch.testing.assert_close(layer.weight.grad, share * x.sum(0))
    exponential, linear = ProgressiveGradientFlow(), ProgressiveGradientFlow(by="linear")
    assert exponential.beta(0.0) == linear.beta(0.0) == 1
    assert linear.beta(0.375) == pytest.approx(0.5)
    assert exponential.beta(0.375) == pytest.approx(2.718281828**-2.5)
    assert exponential.beta(0.75) == linear.beta(0.8) == 0
