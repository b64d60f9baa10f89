"""Integer-only models kept in folders: the same bits again, damaged ones in one line, and those that are not made."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shoestring.base import open_model
from shoestring.contract.batch import Inputs
from shoestring.errors import ShoestringError, UsageError
from shoestring.model.layout import Pattern, SpanAt
from shoestring.quantise.integer_only.convert import integer_model
from shoestring.quantise.integer_only.kept import FILE, KIND, IntegerOnlyFile, write_folder
from tests.quantise import making
from tests.quantise.integer_models import SHAPES, ids_of, made, part


@pytest.mark.parametrize("name", SHAPES)
def test_the_same_bits_come_back_from_a_folder(name: str, tmp_path: Path) -> None:
    _, found = made(name)
    (tmp_path / "q").mkdir()
    size = write_folder(tmp_path / "q", IntegerOnlyFile(found, {"ends": [7], "notes": ["a note"]}), None, None)
    assert size == (tmp_path / "q" / FILE).stat().st_size
    opened = open_model(str(tmp_path / "q"))
    assert (opened.about.kind, opened.about.values["ends"], opened.tokenizer) == ("integer_only", [7], None)
    assert (opened.about.notes, opened.about.chat_template) == (("a note",), None)  # no tokenizer
    ids = Inputs(ids_of(2))
    again = opened.model.read(ids)
    assert torch.equal(again.hidden, found.read(ids).hidden)
    assert torch.equal(again.logits(), found.read(ids).logits())
    assert open_model(str(tmp_path / "q"), "packed").about.digest == opened.about.digest
    with pytest.raises(UsageError, match="integers alone: it cannot be opened in float32"):
        open_model(str(tmp_path / "q"), torch.float32)


SHIFT = "blocks.0.token_mixer.qkv.shift"
HOSTILE: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], Any], str]] = {
    "a tensor too few": (lambda d, t: t.pop("norm.multiplier"), "lacks the tensor norm.multiplier"),
    "a tensor too many": (lambda d, t: t.update(more=torch.zeros(2)), "has, and its model has not"),
    "another shape": (
        lambda d, t: t.update({"norm.multiplier": torch.zeros(2, dtype=torch.int32)}),
        "and the model's is",
    ),
    "a float": (lambda d, t: t.update({"norm.multiplier": torch.zeros(32)}), "is torch.float32"),
    "no shift": (lambda d, t: t.update({SHIFT: torch.tensor(0, dtype=torch.int32)}), "is no shift"),
    "a long shift": (lambda d, t: t.update({SHIFT: torch.tensor(64, dtype=torch.int32)}), "is no shift"),
    "a norm's long shift": (
        lambda d, t: t.update({"norm.shift": torch.tensor(64, dtype=torch.int32)}),
        r"norm\.shift is 64, which is no shift",
    ),
    "a norm's short shift": (
        lambda d, t: t.update({"norm.shift": torch.tensor(8, dtype=torch.int32)}),
        r"norm\.shift is 8, which is no shift",
    ),
    "no scale": (lambda d, t: d.update(logits_scale=float("nan")), "does not describe"),
    "no configuration": (lambda d, t: d.update(config=3), "does not describe"),
    "layers without end": (lambda d, t: d["config"].update(layers=4000), "too few tensors"),
    "a model that cannot be": (lambda d, t: d["config"].update(heads=-3), "no integer-only model"),
    "an unknown part": (lambda d, t: d["config"].update(token_mixer={"name": "mamba2"}), "has no integer-only form"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_a_file_says_is_not_trusted(case: str, tmp_path: Path) -> None:
    change, said = HOSTILE[case]
    _, found = made("plain")
    write_folder(tmp_path, IntegerOnlyFile(found), None, None)
    described, tensors = KIND.read(tmp_path / FILE)
    change(described, tensors)
    rest = {key: value for key, value in described.items() if key not in ("format", "version")}
    (tmp_path / FILE).write_bytes(KIND.content(json.loads(json.dumps(rest)), tensors))
    with pytest.raises(ShoestringError, match=said) as error:
        open_model(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    _, found = made("plain")
    write_folder(tmp_path, IntegerOnlyFile(found), None, None)
    content = bytearray((tmp_path / FILE).read_bytes())
    content[-3] ^= 4
    (tmp_path / FILE).write_bytes(bytes(content))
    with pytest.raises(ShoestringError, match="is damaged: its checksum"):
        open_model(str(tmp_path))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a token mixer": (
        {"pattern": (Pattern("1", token_mixer=part("mamba2", "token mixer")),)},
        "layer 1: the token mixer 'mamba2' has no integer-only form: supported are attention, efficient_attention",
    ),
    "a channel mixer": (
        {"channel_mixer": part("moe", "channel mixer")},
        "layer 0: the channel mixer 'moe' has no integer-only form: supported are swiglu, gelu, squared_relu",
    ),
    "a residual": (
        {"residual": part("parallel", "residual")},
        "layer 0: the residual 'parallel' has no integer-only form",
    ),
    "a span": ({"span": (SpanAt("1", part("byte_pool", "span")),)}, r"within a span \(byte_pool\)"),
    "both ways": ({"causal": False}, "sees both ways"),
    "two kinds of positions": (
        {"pattern": (Pattern("1", token_mixer=part("attention", "token mixer", rope_theta=99.0)),)},
        "different rotary positions",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_layouts_are_refused_by_name(case: str) -> None:
    more, said = REFUSED[case]
    with pytest.raises(UsageError, match=said):
        integer_model(making.native(**more), making.text())


def test_what_is_no_plain_model_is_refused() -> None:
    with pytest.raises(UsageError, match="a Wrapped is not a plain native model"):
        integer_model(making.wrapped(), making.text())
    model = making.native()
    with pytest.raises(UsageError, match="text to calibrate on is needed"):
        integer_model(model, ())

    class Other(torch.nn.Linear):
        pass

    channels: Any = model.blocks[1].channel_mixer
    rows, columns = channels.output.weight.shape
    channels.output = Other(columns, rows, bias=False)
    with pytest.raises(UsageError, match=r"layer 1: channel_mixer\.output is a Other, which has no integer-only form"):
        integer_model(model, making.text())


def test_sizes_that_no_configuration_holds_are_refused() -> None:
    model = making.native()
    channels: Any = model.blocks[0].channel_mixer
    channels.output, channels.gate_up = torch.nn.Linear(40, 32, bias=False), torch.nn.Linear(32, 80, bias=False)
    with pytest.raises(UsageError, match="sizes that its configuration does not hold"):
        integer_model(model, making.text())


def test_numbers_without_a_code_are_refused_by_name() -> None:
    model: Any = making.native()
    with torch.no_grad():
        model.blocks[1].channel_mixer.output.weight[0, 0] = torch.nan
    with pytest.raises(ShoestringError, match="is not finite on the calibration text"):
        integer_model(model, making.text())
