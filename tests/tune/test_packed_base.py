"""Adapters over packed matrices: gradients are those of the numbers that they stand for, and no plain copy is held."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from shoestring.base import open_model
from shoestring.base.quantised_model import QuantisedTransformer
from shoestring.config import merge, overrides
from shoestring.contract.batch import Inputs
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.launch.launch import Launch
from shoestring.launch.tuning import tuning_request
from shoestring.lowbit import straight_through
from shoestring.lowbit.format import Quantised
from shoestring.lowbit.grouped import GroupedEmbedding, GroupedLinear
from shoestring.lowbit.packed_embedding import PackedEmbedding
from shoestring.lowbit.packed_linear import PackedLinear
from shoestring.lowbit.packing.grouped import rounded
from shoestring.quantise.kronecker import Kronecker
from shoestring.quantise.transformed_linear import TransformedLinear
from tests.train.command import TINY
from tests.train.command import shoestring_here as shoestring
from tests.tune.test_resume_tuning import PLAIN

ROWS, COLUMNS = 70, 48


def layers() -> dict[str, nn.Module]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, COLUMNS, generator=generator)
    codes, scales = torch.randint(-1, 2, (ROWS, COLUMNS), generator=generator).to(torch.int8), torch.rand(ROWS, 1)
    four = GroupedLinear.of(rounded(weight, 4), COLUMNS, torch.randn(ROWS))
    turned = [torch.linalg.qr(torch.randn(size, size, generator=generator))[0] for size in (6, 8)]
    return {
        "4 bits": four,
        "8 bits": GroupedLinear.of(rounded(weight, 8), COLUMNS),
        "turned": TransformedLinear(four, Kronecker(*turned)),
        "ternary2": PackedLinear.of(Quantised(codes, scales), "ternary2"),
        "ternary1.6": PackedLinear.of(Quantised(codes, scales), "ternary1.6"),
        "head": GroupedEmbedding.of(rounded(weight, 4), COLUMNS),
        "head of integers": PackedEmbedding.of(Quantised(codes, scales), 8),
    }


@pytest.mark.parametrize("name", layers())
def test_the_gradient_is_that_of_the_numbers_that_are_packed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(straight_through, "SLAB", 32)  # several, and the last is short
    layer: Any = layers()[name]
    own = type(layer.inner if name == "turned" else layer)
    rows, asked = own._rows, list[int]()

    def watched(self: Any, first: int, last: int) -> Tensor:
        asked.append(last - first)
        found: Tensor = rows(self, first, last)
        return found

    monkeypatch.setattr(own, "_rows", watched)
    x = torch.randn(2, 3, COLUMNS, requires_grad=True)
    kept = list[Tensor]()
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):  # type: ignore[func-returns-value]
        y = layer.logits(x) if name.startswith("head") else layer(x)
    outer = torch.randn_like(y)
    y.backward(outer)
    assert asked == [32, 32, 6]
    assert sum(one.numel() for one in kept) < ROWS * COLUMNS / 4, "the weight is kept for the backward pass"
    asked.clear()
    weight = layer.computed_weight() if hasattr(layer, "computed_weight") else layer.quantised().dequantise()
    torch.testing.assert_close(x.grad, outer @ weight, atol=1e-4, rtol=1e-4)
    bias = getattr(layer, "bias", None)
    plain = x.detach() @ weight.T + (0 if bias is None else bias)
    assert float((y.detach() - plain).norm() / plain.norm()) < 0.02  # what is read is rounded to eight bits


@pytest.fixture(scope="module")
def quantised(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in four bits."""
    run = tmp_path_factory.mktemp("base") / "run"
    shape = [*(word for word in TINY if not word.startswith("--model.layers")), "--model.layers=2"]
    status, _, errors = shoestring("train", "--budget=2ktok", f"--data.corpus={corpus}", *shape, "--out", run)
    assert status == 0, errors
    out = run.with_name("four")
    words = ("--to=4bit", "--solver=rtn", "--unmeasured", "--out", out)
    status, _, errors = shoestring("quantise", run, *words)
    assert status == 0, errors
    return out


def said(model: LanguageModule) -> Tensor:
    with torch.no_grad():
        return model.read(Inputs(torch.arange(12).view(1, 12))).logits()


def test_a_run_keeps_its_base_packed_and_its_adapters_apart(quantised: Path, corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [f"--data.corpus={corpus}", "--budget=192tok", "--old=none", *PLAIN, "--out", str(run)]
    status, _, errors = shoestring("tune", quantised, "--packed", *words)
    assert status == 0, errors
    told = json.loads((run / "summary.json").read_text())
    assert told["steps"] == 6
    (kept,) = sorted((run / "checkpoints").glob("*/model.safetensors"))[-1:]
    with safe_open(kept, "pt") as file:
        names = list(file.keys())
    assert names
    assert all(name.endswith((".down", ".up")) for name in names), "the base is kept with the run"
    tuned: Any = open_model(str(run)).model
    assert isinstance(tuned, QuantisedTransformer)
    expected = said(tuned)
    assert not torch.equal(expected, said(open_model(str(quantised)).model))  # type: ignore[arg-type]
    for dtype in (None, "packed"):
        again: Any = open_model(str(run / "adapter"), dtype).model
        assert any(isinstance(one, GroupedLinear) for one in again.modules())
        torch.testing.assert_close(said(again), expected, atol=1e-5, rtol=1e-5)
    plain: Any = open_model(str(run), torch.float32)
    folded: Any = open_model(str(run / "adapter")).fold
    for one in (plain.model, plain.fold(), folded()):
        assert not any(getattr(module, "constant", False) for module in one.modules())
        assert float((said(one) - expected).norm() / expected.norm()) < 0.03
    status, _, errors = shoestring("export", run, "--to=transformers", "--out", tmp_path / "hf")
    assert status == 0, errors
    stock: Any = open_model(str(tmp_path / "hf"), torch.float32).model
    assert float((said(stock) - expected).norm() / expected.norm()) < 0.03


def test_what_cannot_learn_is_refused(quantised: Path, corpus: Path) -> None:
    asked = merge(overrides(PLAIN), {"budget": "1ktok", "data": {"corpus": str(corpus)}, "model": {"packed": True}})
    with pytest.raises(UsageError, match="give a method of adapters"):
        tuning_request(str(quantised), "full", asked, "")
    compiled = merge(asked, {"execution": {"compile": "blocks"}})
    request = tuning_request(str(quantised), "lora", compiled, "")
    with pytest.raises(UsageError, match="this one is packed"), Launch() as launch:
        launch.begin(request, quantised.with_name("never"))
