"""One table for every transform: what a model computes stays, and it loses no more than without on what the transform is for."""

from typing import Any

import pytest
import torch

from shoestring.config import Choice
from shoestring.errors import UsageError
from shoestring.method import methods
from shoestring.quantise.format import CodeFormat
from shoestring.quantise.formats.integer_groups import IntegerGroups
from shoestring.quantise.kronecker import Kronecker, factors
from shoestring.quantise.parts import Transform, never
from shoestring.quantise.quantisation import put
from shoestring.quantise.transforms.flatquant import FlatQuant
from shoestring.quantise.transforms.hadamard import Hadamard, orthogonal
from shoestring.surgery.observe import observe
from tests.quantise import making

FORM = IntegerGroups(code_bits=3, group=16, clips=3)
TRANSFORMS = {
    "none": {},
    "hadamard": {},
    "rotation": {},
    "flatquant": {"steps": 12},
    "equivalent_scaling": {"steps": 2},
}
NATIVE_ONLY = {"rotation", "equivalent_scaling"}


def transform(name: str) -> Transform:
    made: Transform = Choice.of("quantise", name, kind="transform", **TRANSFORMS[name]).build()
    return made


def test_every_transform_has_a_place_in_this_table() -> None:
    assert {card.name for card in methods("quantise", "transform")} == set(TRANSFORMS)


@pytest.mark.parametrize("shape", ["native", "untied", "gemma2"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_the_model_computes_stays(name: str, shape: str) -> None:
    model = making.model_named(shape)
    before = making.logits(model)
    one = transform(name)
    if shape == "gemma2" and name in NATIVE_ONLY:
        with pytest.raises(UsageError, match="for native models"):
            one.of_model(model, making.text(), FORM, never)
        return
    changed = one.of_model(model, making.text(), FORM, never)
    assert torch.equal(making.logits(model), before)
    put(model, changed.tensors)
    torch.testing.assert_close(making.logits(model), before, atol=2e-5, rtol=1e-4)
    assert (name in NATIVE_ONLY) == bool(changed.tensors)
    assert bool(changed.notes) == (name == "rotation" and shape == "native")
    for matrix in model.anatomy().matrices():
        x = torch.randn(4, matrix.weight.shape[1], generator=torch.Generator().manual_seed(0))
        weight = matrix.weight.detach()
        pair = one.of_matrix(weight, torch.eye(weight.shape[1]), FORM, never)
        assert (pair is not None) == (name in ("hadamard", "flatquant"))
        if pair is not None:
            torch.testing.assert_close(pair.times(x) @ pair.of_weight(weight).T, x @ weight.T, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(pair.of_hessian(x.T @ x), pair.times(x).T @ pair.times(x), atol=1e-3, rtol=1e-3)


def test_a_kronecker_product_is_the_matrix_of_its_formula() -> None:
    draw = torch.Generator().manual_seed(0)
    pair = Kronecker(torch.randn(3, 3, generator=draw), torch.randn(4, 4, generator=draw))
    whole = torch.kron(pair.left, pair.right)
    x = torch.randn(5, 12, generator=draw)
    torch.testing.assert_close(pair.times(x), x @ whole)
    torch.testing.assert_close(pair.transposed.times(x), x @ whole.T)
    torch.testing.assert_close(pair.inverse.times(pair.times(x)), x, atol=1e-4, rtol=1e-4)
    assert [factors(size) for size in (64, 576, 1536, 7)] == [(8, 8), (24, 24), (32, 48), (1, 7)]
    for size in (1, 8, 12):
        made = orthogonal(size, draw)
        torch.testing.assert_close(made @ made.T, torch.eye(size), atol=1e-5, rtol=0)


def test_a_rotation_spreads_an_outlier_and_learning_helps_it() -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 64, generator=draw)
    weight[:, 5] *= 20
    x = torch.randn(100, 64, generator=draw)
    hessian = x.T @ x / 100
    form = IntegerGroups(code_bits=3, group=0)

    def lost(pair: Kronecker | None) -> float:
        found = form.encode(weight if pair is None else pair.of_weight(weight)).plain()
        off = (found if pair is None else pair.transposed.times(found)) - weight
        return float(((off @ hessian) * off).sum())

    turned = lost(Hadamard().of_matrix(weight, hessian, form, never))
    learned = lost(FlatQuant(steps=30, rate=0.01).of_matrix(weight, hessian, form, never))
    assert learned < turned < lost(None)


def test_learning_ends_where_a_transform_all_but_has_no_inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    weight, form, asked = torch.randn(8, 16, generator=draw), IntegerGroups(code_bits=3, group=0), list[float]()

    def nearest(turned: torch.Tensor, format: CodeFormat) -> torch.Tensor:
        asked.append(float(turned.abs().max()))
        return form.encode(turned * (1.0 if len(asked) < 3 else 1e6)).plain()  # no scale in float16 holds that

    monkeypatch.setattr("shoestring.quantise.transforms.flatquant._nearest", nearest)
    made = FlatQuant(steps=30).of_matrix(weight, torch.eye(16), form, never)
    assert len(asked) == 3
    assert form.encode(made.of_weight(weight)).plain().isfinite().all()


def test_scales_make_what_matters_finer() -> None:
    """Of a model one of whose features is large, the layers that read it lose less with scales, at the same bits."""
    form, off = IntegerGroups(code_bits=3, group=0), dict[str, float]()
    for name in ("none", "equivalent_scaling"):
        model = making.native()
        with torch.no_grad():
            for block in model.blocks:
                block.token_norm.weight[3] *= 25  # type: ignore[union-attr, index, operator]
                block.channel_norm.weight[3] *= 25  # type: ignore[union-attr, index, operator]
        put(model, transform(name).of_model(model, making.text(), form, never).tensors)
        lost = dict[str, float]()

        def look(reader: str, x: torch.Tensor, model: Any = model, lost: dict[str, float] = lost) -> None:
            weight = model.get_parameter(f"{reader}.weight").detach()
            spoilt = x @ (form.encode(weight).dequantise() - weight).T
            lost[reader] = lost.get(reader, 0.0) + float(spoilt.square().sum() / (x @ weight.T).square().sum())

        observe(model, making.text(), [one.name for one in model.anatomy().matrices()], look)
        off[name] = sum(lost.values())
    assert off["equivalent_scaling"] < 0.8 * off["none"]
