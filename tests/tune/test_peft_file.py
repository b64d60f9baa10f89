"""Adapters from peft load here, and ours there: the same logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shoestring.base import open_model
from shoestring.base.adapters import save_adapter
from shoestring.config import Choice
from shoestring.errors import UsageError
from shoestring.tune.adapter_edit import AdapterEdit
from tests.tune.making import KINDS, adapted, folder_of, logits, move, opened

peft = pytest.importorskip("peft", reason="the package peft is not installed")

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 3, "alpha": 5.0},
    "rslora": {"rank": 3, "alpha": 5.0},
    "dora": {"rank": 3},
    "adalora": {"rank": 2, "first_rank": 3},
    "road": {"group": 16, "each": 1},
    "road, 2": {"group": 16, "each": 2},
    "road, 4": {"group": 16, "each": 4},
}
TARGETS = {
    "llama": ["q_proj", "v_proj", "gate_proj", "down_proj"],
    "qwen2": ["k_proj", "o_proj", "up_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "gpt2": ["c_attn", "mlp.c_proj"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: folder_of(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def edit(name: str) -> AdapterEdit:
    made: AdapterEdit = Choice.of("tune", name.split(",")[0], kind="edit", **METHODS[name]).build()
    return made


def theirs(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_ours_load_in_peft(name: str, kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    if name.startswith("road") and kind in ("gpt_neox", "gpt2"):
        model, decision = adapted(opened(folders[kind]), edit(name))
        with pytest.raises(UsageError, match=r"another order|Conv1D"):
            save_adapter(tmp_path / "adapter", model, edit(name), decision.values, str(folders[kind]))
        return
    model, decision = adapted(opened(folders[kind]), edit(name))
    save_adapter(tmp_path / "adapter", model, edit(name), decision.values, str(folders[kind]), kind)
    stock = peft.PeftModel.from_pretrained(theirs(folders[kind]), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(stock), logits(model), atol=1e-5, rtol=1e-5)
    again = open_model(str(tmp_path / "adapter"), torch.float32)
    assert again.about.kind == "adapter"
    torch.testing.assert_close(logits(again.model), logits(model), atol=1e-5, rtol=1e-5)  # type: ignore[arg-type]
    assert again.fold is not None
    torch.testing.assert_close(logits(again.fold()), logits(model), atol=1e-5, rtol=1e-5)  # type: ignore[arg-type]


def configured(name: str, kind: str) -> Any:
    if name == "road":
        return peft.RoadConfig(variant="road_2", group_size=16, target_modules=TARGETS[kind])
    known: dict[str, dict[str, Any]] = {
        "lora": {"rank_pattern": {TARGETS[kind][0]: 2}, "alpha_pattern": {TARGETS[kind][1]: 3}},
        "rslora": {"use_rslora": True},
        "dora": {"use_dora": True},
    }
    return peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS[kind], **known[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "road"])
def test_theirs_load_here(name: str, kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    if name == "road" and kind in ("gpt_neox", "gpt2"):
        pytest.skip("peft turns no Conv1D, and a gpt_neox's rows are in another order here")
    torch.manual_seed(4)
    stock = peft.get_peft_model(theirs(folders[kind]), configured(name, kind)).eval()
    move(stock)
    stock.save_pretrained(tmp_path / "adapter")
    found = open_model(str(tmp_path / "adapter"), torch.float32)
    assert found.about.values["edits"] == [name]
    torch.testing.assert_close(logits(found.model), logits(stock), atol=1e-5, rtol=1e-5)  # type: ignore[arg-type]
    assert found.fold is not None
    torch.testing.assert_close(logits(found.fold()), logits(stock), atol=1e-5, rtol=1e-5)  # type: ignore[arg-type]


def test_an_adapter_goes_there_and_back_unchanged(folders: dict[str, Path], tmp_path: Path) -> None:
    """Parts of a fused matrix, of ranks of their own, come back as they were."""
    stock = peft.get_peft_model(theirs(folders["llama"]), configured("lora", "llama"))
    move(stock)
    stock.save_pretrained(tmp_path / "first")
    from shoestring.base.adapters import parts_in
    from shoestring.tune.peft_file import adapter_of, read_adapter

    model = opened(folders["llama"])
    made, decision = adapter_of(read_adapter(tmp_path / "first"), model, parts_in(model))
    save_adapter(tmp_path / "second", made.apply(model, decision), made, decision.values, "x", "llama")
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "second"))
    for name, tensor in first.items():
        if not name.endswith("A.weight"):
            tensor = tensor * 1.0
        module = name.rpartition(".lora_")[0]
        product = first[f"{module}.lora_B.weight"] @ first[f"{module}.lora_A.weight"]
        other = second[f"{module}.lora_B.weight"] @ second[f"{module}.lora_A.weight"]
        assert first[f"{module}.lora_A.weight"].shape == second[f"{module}.lora_A.weight"].shape
        torch.testing.assert_close(
            product * _scale(tmp_path / "first", module, first), other * _scale(tmp_path / "second", module, second)
        )


def _scale(folder: Path, module: str, tensors: dict[str, torch.Tensor]) -> float:
    config = peft.PeftConfig.from_pretrained(folder)
    rank = tensors[f"{module}.lora_A.weight"].shape[0]
    alphas = [alpha for pattern, alpha in config.alpha_pattern.items() if module.endswith(pattern)]
    return float((alphas or [config.lora_alpha])[0]) / rank


def test_an_adapter_is_put_on_another_base(folders: dict[str, Path], tmp_path: Path) -> None:
    model, decision = adapted(opened(folders["llama"]), edit("lora"))
    save_adapter(tmp_path / "adapter", model, edit("lora"), decision.values, "", "llama")
    with pytest.raises(UsageError, match=r"names no base: open it as BASE\+"):
        open_model(str(tmp_path / "adapter"))
    found = open_model(f"{folders['llama']}+{tmp_path / 'adapter'}", torch.float32)
    torch.testing.assert_close(logits(found.model), logits(model), atol=1e-5, rtol=1e-5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="which this model has not"):
        open_model(f"{folders['gpt2']}+{tmp_path / 'adapter'}")


def wrong(folder: Path, what: str) -> None:
    settings = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    first = next(name for name in tensors if name.endswith("lora_B.weight"))
    if what == "pickle":
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
        return
    if what == "garbage":
        (folder / "adapter_model.safetensors").write_bytes(b"\x00" * 100)
        return
    if what == "kind":
        settings["peft_type"] = "IA3"
    elif what == "bias":
        settings["bias"] = "all"
    elif what == "pattern":
        settings["alpha_pattern"] = {"(a*)*q_proj": 3}
    elif what == "alpha":
        settings["lora_alpha"] = "much"
    elif what == "missing":
        del tensors[first]
    elif what == "shape":
        tensors[first] = tensors[first][:-1].contiguous()
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("pickle", "adapter_model.bin can run code"),
        ("garbage", "cannot be read"),
        ("kind", "of the kind IA3"),
        ("bias", "bias = all is not known here"),
        ("pattern", "is a regular expression"),
        ("alpha", "lora_alpha of .* is no number"),
        ("missing", "lacks lora_B.weight"),
        ("shape", "has .* where the model has"),
    ],
)
def test_what_is_no_adapter_is_refused(what: str, said: str, folders: dict[str, Path], tmp_path: Path) -> None:
    model, decision = adapted(opened(folders["llama"]), edit("lora"))
    save_adapter(tmp_path / "adapter", model, edit("lora"), decision.values, str(folders["llama"]), "llama")
    wrong(tmp_path / "adapter", what)
    from shoestring.errors import ShoestringError

    with pytest.raises(ShoestringError, match=said) as caught:
        open_model(str(tmp_path / "adapter"))
    assert "\n" not in str(caught.value)
