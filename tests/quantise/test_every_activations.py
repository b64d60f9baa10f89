"""One table for every way to round activations: its formula, and models that compute with it wherever they are opened."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shoestring.base import open_model
from shoestring.config import Choice
from shoestring.errors import ShoestringError
from shoestring.lowbit.grouped import GroupedLinear
from shoestring.lowbit.integer_linear import IntegerLinear
from shoestring.method import methods
from shoestring.quantise.engine import quantise_layers
from shoestring.quantise.folder import contents_of, write_folder
from shoestring.quantise.formats.integer_groups import IntegerGroups
from shoestring.quantise.inputs import InputRounding, RoundedInputs, restored_inputs
from shoestring.quantise.transforms.hadamard import Hadamard
from tests.quantise import making


def token(x: np.ndarray, bits: int, _: Any) -> np.ndarray:
    made = np.zeros_like(x)
    for row, values in enumerate(x):
        scale = np.abs(values).max() / (2 ** (bits - 1) - 1)
        made[row] = scale * np.round(values / scale) if scale else 0
    return made


def static(x: np.ndarray, bits: int, ends: tuple[float, float]) -> np.ndarray:
    low, high = ends
    step = (high - low) / (2**bits - 1)
    zero = np.round(-low / step)
    return step * (np.clip(np.round(x / step) + zero, 0, 2**bits - 1) - zero)


FORMULAS = {"token": token, "static": static}


def rounding(name: str, **options: Any) -> InputRounding:
    made: InputRounding = Choice.of("quantise", name, kind="activations", **options).build()
    return made


def drawn() -> Tensor:
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    x[:, 5] *= 30
    return x


def test_every_way_has_a_formula() -> None:
    assert {card.name for card in methods("quantise", "activations")} == {"none", *FORMULAS}
    assert Choice.of("quantise", "none", kind="activations").build() is None


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("name", FORMULAS)
def test_numbers_are_those_of_the_formula(name: str, bits: int) -> None:
    x, one = drawn(), rounding(name, bits=bits)
    x[3] = 0
    settled = one.settle(x)
    ends: Any = tuple(settled["range"].double().tolist()) if settled else None
    found = one.round(x, settled)
    np.testing.assert_allclose(found.numpy(), FORMULAS[name](x.double().numpy(), bits, ends), atol=2e-5, rtol=2e-5)
    assert torch.equal(one.round(found, settled), found) or name == "token"
    assert one.round(x.bfloat16(), settled).dtype == torch.bfloat16
    again = restored_inputs({"name": name, **one.choice.options}, settled)
    assert torch.equal(again(x), found)


def test_a_range_is_the_one_of_the_least_error() -> None:
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    x[0, 0] = 40.0  # one number that is not worth its range
    one = rounding("static", bits=4)
    low, high = one.settle(x)["range"].tolist()
    assert high < 20
    lost = float((one.round(x, {"range": torch.tensor([low, high])}) - x).square().sum())
    wide = x.double().numpy()
    for share in np.linspace(0.2, 1, 20):
        for ends in ((float(x.min()), 40 * share), (float(x.min()) * share, high)):
            assert lost <= np.square(static(wide, 4, ends) - wide).sum() * 1.001
    wholly = rounding("static", bits=4, clips=1).settle(x)["range"]
    assert wholly.tolist() == [pytest.approx(float(x.min())), 40.0]
    zeros = one.settle(torch.zeros(3, 4))
    assert torch.equal(one.round(torch.ones(2, 4), zeros), torch.zeros(2, 4))


def test_rotations_make_four_bits_enough_for_outliers() -> None:
    x, weight = drawn(), torch.randn(16, 32, generator=torch.Generator().manual_seed(2))
    pair = Hadamard().of_matrix(weight, None, IntegerGroups(), lambda: False)
    one = RoundedInputs(rounding("token", bits=4), {})
    plain, turned = one(x), one.before(pair)(torch.nn.Identity(), (x,))[0]
    off = [float(((seen - x) @ weight.T).norm() / (x @ weight.T).norm()) for seen in (plain, turned)]
    assert off[1] < off[0] / 2


WAYS: dict[str, tuple[str, dict[str, Any], str, type]] = {
    "8 bits a token, one scale a row": ("token", {}, "multiplied as integers", IntegerLinear),
    "8 bits a token, groups": ("token", {}, "in plain numbers", torch.nn.Linear),
    "4 bits a token": ("token", {"bits": 4}, "in plain numbers", torch.nn.Linear),
    "static": ("static", {}, "in plain numbers", torch.nn.Linear),
}


@pytest.mark.parametrize("transform", ["none", "hadamard"])
@pytest.mark.parametrize("shape", ["untied", "gemma2", "gpt2"])
@pytest.mark.parametrize("way", WAYS)
def test_an_opened_model_rounds_what_it_reads(way: str, shape: str, transform: str, tmp_path: Path) -> None:
    name, options, said, kind = WAYS[way]
    whole = way.endswith("a row")
    form = IntegerGroups(code_bits=8 if whole else 4, group=0 if whole else 16, symmetric=True)
    model = making.model_named(shape)
    recipe = making.recipe(form, transform=transform, table_bits=16, activations=rounding(name, **options))
    done = quantise_layers(model, making.text(), recipe)
    assert all(one.inputs is not None for one in done.matrices.values())
    unrounded = making.logits(model)
    contents = contents_of(model, {**done.tables, **done.matrices}, {})
    write_folder(tmp_path, model, contents, None, None)
    # the reference: each plain layer is given what its inputs are rounded to
    for matrix, one in done.matrices.items():

        def rounded(_: Any, given: Any, one: Any = one) -> Any:
            x, turn = given[0], one.pair
            turned = one.inputs.rounding.round(x if turn is None else turn.times(x), one.inputs.parameters)
            return (turned if turn is None else turn.inverse.times(turned), *given[1:])

        model.get_submodule(matrix).register_forward_pre_hook(rounded)
    expected = making.logits(model)
    opened = open_model(str(tmp_path))
    packs = shape == "untied"
    assert any((said if packs else "in plain numbers") in note for note in opened.about.notes)
    found: Any = opened.model
    # a number that lies between two codes goes one way or the other by the last bit of a sum
    near, far = (float((other - expected).norm() / expected.norm()) for other in (making.logits(found), unrounded))
    assert near < (5e-3 if packs and whole else 1e-5) < far
    if packs:
        held = [one for one in found.blocks.modules() if isinstance(one, kind)]
        assert len(held) == 8
        assert not any(isinstance(one, GroupedLinear) for one in found.blocks.modules())
    plain: Any = open_model(str(tmp_path), torch.float32).model
    torch.testing.assert_close(making.logits(plain), unrounded, atol=1e-4, rtol=1e-3)


def test_later_layers_are_calibrated_on_rounded_inputs_and_a_budget_leaves_them() -> None:
    form = IntegerGroups(code_bits=2, group=16)
    plain = quantise_layers(making.native(), making.text(), making.recipe(form, "gptq"))
    model = making.native()
    two = making.recipe(form, "gptq", activations=rounding("token", bits=2))
    done = quantise_layers(model, making.text(), two)
    first, *_, last = done.matrices
    assert torch.equal(done.matrices[first].codes, plain.matrices[first].codes)
    assert not torch.equal(done.matrices[last].codes, plain.matrices[last].codes)
    assert not any(module._forward_pre_hooks for module in model.modules()), "a hook is left in the model"
    late = making.recipe(form, activations=rounding("static"))
    ended = quantise_layers(making.native(), making.text(), late, over=lambda: True)
    assert all(one.inputs is None for one in ended.matrices.values())
    assert any("8 matrices, blocks.0" in note and "read their inputs unrounded" in note for note in ended.notes)


def test_what_is_damaged_is_refused() -> None:
    ends = {"range": torch.tensor([-1.0, 1.0])}
    for told, parameters in (
        ({"name": "static"}, {}),
        ({"name": "static"}, {"range": torch.tensor([1.0, -1.0])}),
        ({"name": "static"}, {"range": torch.tensor([-1.0, torch.inf])}),
        ({"name": "static", "bits": 9}, ends),
        ({"name": "token"}, ends),
        ({"name": "none"}, {}),
        ({"name": 3}, {}),
        ("token", {}),
    ):
        with pytest.raises(ShoestringError):
            restored_inputs(told, parameters)
