"""One table for every solver: with formats of all kinds, beside slow references."""

import pytest
import torch
from torch import Tensor

from shoestring.config import Choice
from shoestring.errors import ShoestringError, UsageError
from shoestring.method import methods
from shoestring.quantise.format import CodeFormat
from shoestring.quantise.formats.integer_groups import IntegerGroups
from shoestring.quantise.formats.k_blocks import KBlocks
from shoestring.quantise.formats.microscaling import Microscaling
from shoestring.quantise.formats.power_groups import PowerGroups
from shoestring.quantise.formats.ternary_blocks import TernaryBlocks
from shoestring.quantise.parts import Solver
from shoestring.quantise.solvers.gptq import GPTQ
from shoestring.quantise.solvers.nupes import NUPES, softly
from shoestring.quantise.solvers.rtn import RTN

SOLVERS: dict[str, Solver] = {
    "rtn": RTN(),
    "rtn, weighted": RTN(weighted=True),
    "gptq": GPTQ(),
    "gptq, in order": GPTQ(ordered=False, block=7),
    "nupes": NUPES(steps=60),
}
FORMS: list[CodeFormat] = [IntegerGroups(code_bits=3, group=16), PowerGroups(code_bits=3, group=16), Microscaling()]


def case() -> tuple[Tensor, Tensor]:
    """(weight [12, 40], the second moments of 200 alike inputs)."""
    draw = torch.Generator().manual_seed(5)
    weight = torch.randn(12, 40, generator=draw)
    x = torch.randn(200, 40, generator=draw) @ torch.randn(40, 40, generator=draw) / 6
    return weight, x.T @ x / 200


def lost(found: Tensor, weight: Tensor, hessian: Tensor) -> float:
    off = (found - weight).double()
    return float(((off @ hessian.double()) * off).sum())


def test_every_solver_has_a_place_in_this_table() -> None:
    assert {card.name for card in methods("quantise", "solver")} == {name.split(",")[0] for name in SOLVERS}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.choice.name)
@pytest.mark.parametrize("name", SOLVERS)
def test_it_loses_no_more_than_rounding_to_the_nearest(name: str, form: CodeFormat) -> None:
    weight, hessian = case()
    if name == "nupes" and not form.smooth:
        with pytest.raises(UsageError, match="use --solver gptq"):
            SOLVERS[name](weight, form, hessian)
        return
    found = SOLVERS[name](weight, form, hessian)
    nearest = RTN()(weight, form, None)
    share = 1.0 if name.startswith("rtn") else 0.75
    assert lost(found.dequantise(), weight, hessian) <= share * lost(nearest.dequantise(), weight, hessian) + 1e-9
    assert torch.equal(SOLVERS[name](weight, form, hessian).codes, found.codes)  # the same again
    assert torch.equal(SOLVERS[name](weight, form, None).dequantise(), nearest.dequantise())


@pytest.mark.parametrize("ordered", [False, True])
def test_gptq_is_that_of_the_paper(ordered: bool) -> None:
    """Column by column with the inverse worked out anew for the columns that are left (the paper's first form of it), and no
    blocks."""
    weight, hessian = case()
    form = IntegerGroups(code_bits=3, group=0, clips=1)
    found = GPTQ(ordered=ordered, block=8)(weight, form, hessian)
    h = hessian.double() + torch.eye(40, dtype=torch.float64) * (
        0.01 * float(hessian.double().diagonal().mean()) + 1e-12
    )
    order = hessian.double().diagonal().argsort(descending=True, stable=True) if ordered else torch.arange(40)
    work, parameters = weight.double().clone(), form.fit(weight, None)
    left = order.tolist()
    codes = torch.zeros(12, 40, dtype=torch.uint8)
    while left:
        column = left[0]
        inverse = torch.linalg.inv(h[left][:, left])
        chosen = form.code(work[:, [column]].float(), parameters)
        codes[:, column] = chosen[:, 0]
        error = (work[:, column] - form.value(chosen, parameters)[:, 0].double()) / inverse[0, 0]
        work[:, left] -= error[:, None] * inverse[0]
        left = left[1:]
    agree = (found.unpacked() == codes).double().mean()
    assert float(agree) > 0.99  # float32 sums against float64: a tie may fall the other way


@pytest.mark.parametrize("form", [KBlocks(), TernaryBlocks()], ids=lambda form: form.choice.name)
@pytest.mark.parametrize("ordered", [False, True])
def test_gptq_knows_the_places_within_a_block(form: CodeFormat, ordered: bool) -> None:
    draw = torch.Generator().manual_seed(6)
    weight, x = torch.randn(4, 512, generator=draw), torch.randn(80, 512, generator=draw)
    x = x @ torch.randn(512, 512, generator=draw) / 20
    hessian = x.T @ x / 80
    found, nearest = GPTQ(ordered=ordered)(weight, form, hessian), RTN()(weight, form, None)
    assert lost(found.dequantise(), weight, hessian) < 0.6 * lost(nearest.dequantise(), weight, hessian)


def test_gptq_bears_columns_that_read_nothing() -> None:
    weight, hessian = case()
    hessian[:, 3] = hessian[3] = 0
    assert bool(GPTQ()(weight, FORMS[0], hessian).dequantise().isfinite().all())
    assert bool(GPTQ()(weight, FORMS[0], torch.zeros(40, 40)).dequantise().isfinite().all())
    with pytest.raises(ShoestringError, match="factored"):
        GPTQ()(weight, FORMS[0], torch.full((40, 40), torch.nan))
    weight[0, 0] = torch.nan
    with pytest.raises(ShoestringError, match="NaN"):
        GPTQ()(weight, FORMS[0], hessian)


def test_soft_codes_are_whole_where_codes_are() -> None:
    whole = torch.arange(8).float()
    for sharp in (1.0, 6.0, 40.0):
        torch.testing.assert_close(softly(whole, sharp), whole)
        between = softly(whole + 0.5, sharp)
        torch.testing.assert_close(between, whole + 0.5)
    assert float((softly(whole + 0.2, 40.0) - whole).abs().max()) < 0.01


@pytest.mark.parametrize("name", ["rtn", "gptq", "nupes"])
def test_bad_options_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        Choice.of("quantise", name, kind="solver", nonsense=1)
