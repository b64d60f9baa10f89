"""The engine: each layer by what the rounded ones before it make of the text, within a budget, and resumed bit by bit."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from shoestring.config import Choice
from shoestring.contract.edit import Evidence
from shoestring.errors import ShoestringError, UsageError
from shoestring.quantise.engine import Recipe, quantise_layers
from shoestring.quantise.format import CodeFormat
from shoestring.quantise.formats.integer_groups import IntegerGroups
from shoestring.quantise.limits import limits_of
from shoestring.quantise.parts import Solver
from shoestring.quantise.progress import QuantiseProgress
from shoestring.quantise.quantisation import Quantisation
from shoestring.quantise.solvers.gptq import GPTQ
from shoestring.quantise.solvers.rtn import RTN
from shoestring.quantise.target import BitTarget
from shoestring.surgery.observe import watching
from tests.quantise import making

PAIRS: dict[str, tuple[CodeFormat, Solver]] = {
    "nearest, 4 bits": (IntegerGroups(code_bits=4, group=16), RTN()),
    "gptq, 3 bits": (IntegerGroups(code_bits=3, group=16), GPTQ()),
}
SHAPES = ["native", "untied", "gemma2", "gpt2"]


def recipe(form: CodeFormat, solver: Solver, **more: object) -> Recipe:
    none = Choice.of("quantise", "none", kind="transform").build()
    return Recipe(form, solver, none, Choice.of("quantise", "uniform", kind="bits").build(), **more)  # type: ignore[arg-type]


def same(one: Quantisation, other: Quantisation) -> bool:
    return list(one.matrices) == list(other.matrices) and all(
        torch.equal(one.matrices[name].dequantise(), other.matrices[name].dequantise()) for name in one.matrices
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pair", PAIRS)
def test_two_unlike_pairs_on_every_kind_of_model(pair: str, shape: str) -> None:
    """Beside a slow reference: every layer calibrated in a whole pass of the model as it is by then."""
    form, solver = PAIRS[pair]
    model, slow = making.model_named(shape), making.model_named(shape)
    before = making.logits(model)
    done = quantise_layers(model, making.text() if solver.reads else (), recipe(form, solver))
    after = making.logits(model)
    assert 0 < float((after - before).norm() / before.norm()) < 1.5
    assert list(done.matrices) == [one.name for one in slow.anatomy().matrices()]
    for layer in range(len(slow.anatomy().layers)):
        matrices = [one for one in slow.anatomy().matrices() if one.layer == layer]
        seen: dict[str, list[torch.Tensor]] = {}

        def look(name: str, x: torch.Tensor, seen: dict[str, list[torch.Tensor]] = seen) -> None:
            seen.setdefault(name, []).append(x.flatten(0, -2))

        with torch.no_grad(), watching(slow, [one.name for one in matrices], look):
            for batch in making.text():
                slow.read(batch.inputs)
        for one in matrices:
            x = torch.cat(seen[one.name])
            weight = one.weight.detach().float()
            made = solver(weight, form, x.T @ x / len(x) if solver.reads else None)
            near = (made.unpacked() == done.matrices[one.name].unpacked()).double().mean()
            # a sum in another order lets a tie fall the other way, and the rest of its row follows
            assert float(near) > (0.9 if solver.reads else 1 - 1e-9)
            off, own = (
                (x @ (found.dequantise() - weight).T).square().sum() for found in (made, done.matrices[one.name])
            )
            assert float(own) == pytest.approx(float(off), rel=0.05)
            with torch.no_grad():
                one.weight.copy_(done.matrices[one.name].dequantise())
    assert torch.equal(making.logits(slow), after)
    if solver.reads:
        assert done.spent.read >= 3 * 6 * 24 - 6 * 24  # recorded once, looked at and gone through in each of two layers


def test_calibration_looks_at_rounded_layers() -> None:
    """The second layer's codes are others where the first layer is left as it is."""
    form = IntegerGroups(code_bits=2, group=16)
    whole = quantise_layers(making.native(), making.text(), recipe(form, GPTQ()))
    part = quantise_layers(making.native(), making.text(), recipe(form, GPTQ(), keep=("blocks.0.*",)))
    assert part.kept == [name for name in whole.matrices if name.startswith("blocks.0.")]
    name = "blocks.1.token_mixer.qkv"
    assert not torch.equal(whole.matrices[name].codes, part.matrices[name].codes)


def stopping(after: int) -> Callable[[], bool]:
    asked = itertools.count()
    return lambda: next(asked) >= after


@pytest.mark.parametrize("after", [0, 3, 9])
def test_when_the_budget_ends_the_rest_is_rounded_and_said(after: int) -> None:
    form = IntegerGroups(code_bits=3, group=16)
    model = making.native(layers=3)
    done = quantise_layers(model, making.text(), recipe(form, GPTQ()), over=stopping(after))
    nearest = quantise_layers(making.native(layers=3), (), recipe(form, RTN()))
    assert len(done.matrices) == 12
    assert done.rounded == list(done.matrices)[12 - len(done.rounded) :]
    assert 0 < len(done.rounded) <= 12
    assert (len(done.rounded) == 12) == (after == 0)
    for name in done.rounded:
        assert torch.equal(done.matrices[name].codes, nearest.matrices[name].codes)
    assert f"{len(done.rounded)} of 12 matrices, from {done.rounded[0]} on" in done.notes[-1]


def test_choosing_bits_leaves_time_for_the_layers() -> None:
    """Where bits must be chosen in a hurry, no loss is measured; the layers are calibrated all the same."""
    chosen = making.recipe(
        IntegerGroups(group=16), "gptq", bits="integer_program", limits=limits_of(BitTarget("bits", 3.5))
    )
    done = quantise_layers(making.native(), making.text(), chosen, hurry=lambda: True)
    patient = quantise_layers(making.native(), making.text(), chosen)
    assert done.rounded == []
    assert done.spent.flops < patient.spent.flops
    count = sum(one.rows * one.columns for one in done.matrices.values())
    assert sum(one.format.bits * one.rows * one.columns for one in done.matrices.values()) <= 3.5 * count


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.parametrize("after", [1, 11])
def test_what_was_killed_goes_on_to_the_same_bits(after: int, tmp_path: Path) -> None:
    form = IntegerGroups(group=16)
    integer = Choice.of("quantise", "integer_program", kind="bits").build()
    turned = Choice.of("quantise", "rotation", kind="transform").build()
    one = Recipe(form, GPTQ(), turned, integer, table_bits=8, limits=limits_of(BitTarget("bits", 3.5)))
    whole = quantise_layers(making.native(tied=False), making.text(), one)

    def killing() -> bool:
        if next(asked) >= after:
            raise Killed
        return False

    asked = itertools.count()
    with pytest.raises(Killed):
        quantise_layers(
            making.native(tied=False), making.text(), one, over=killing, progress=QuantiseProgress(tmp_path, "a")
        )
    other = QuantiseProgress(tmp_path, "b")
    assert other.read("transform") is None  # of another quantisation
    model = making.native(tied=False)
    resumed = quantise_layers(model, making.text(), one, progress=QuantiseProgress(tmp_path, "a"))
    assert same(whole, resumed)
    again = quantise_layers(making.native(tied=False), making.text(), one, progress=QuantiseProgress(tmp_path, "a"))
    assert same(whole, again)
    assert whole.changed
    assert all(torch.equal(whole.changed[name], again.changed[name]) for name in whole.changed)
    path = next(tmp_path.glob("layer-*.safetensors"))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ShoestringError, match="is damaged"):
        quantise_layers(making.native(tied=False), making.text(), one, progress=QuantiseProgress(tmp_path, "a"))


def test_what_cannot_be_quantised_is_refused_in_one_line() -> None:
    form = IntegerGroups(code_bits=3, group=16)
    with pytest.raises(UsageError, match="looks at text, and none"):
        quantise_layers(making.native(), (), recipe(form, GPTQ()))
    with pytest.raises(UsageError, match="names no matrix"):
        quantise_layers(making.native(), (), recipe(form, RTN(), keep=("nothing",)))
    with pytest.raises(UsageError, match="leaves no matrix"):
        quantise_layers(making.native(), (), recipe(form, RTN(), keep=("*",)))
    broken = making.native()
    with torch.no_grad():
        broken.get_parameter("blocks.1.channel_mixer.output.weight")[2, 2] = torch.nan
    for solver in (RTN(), GPTQ()):
        with pytest.raises(ShoestringError, match=r"(blocks\.1\.channel_mixer\.output: a weight is NaN)|factored"):
            quantise_layers(making.copied(broken), making.text(), recipe(form, solver))


def test_the_edit_leaves_the_model_and_composes_with_itself() -> None:
    model = making.native()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    edit = Choice.of("quantise", "ptq", kind="edit", to=3.5, bits="selective_rtn").build()
    decision = edit.decide(model, Evidence(text=making.text()))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert decision.spent.flops
    made = edit.apply(model, decision)
    assert "8 matrices of 24,576 weights" in edit.describe(made, decision)
    assert all(type(module) is nn.Linear for module in made.modules() if hasattr(module, "in_features"))
    with pytest.raises(UsageError, match="the model has"):
        edit.apply(making.native(width=16), decision)
    assert making.logits(made).isfinite().all()
