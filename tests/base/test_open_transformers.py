"""Folders of transformers: the logits of the stock class, tokenizers and templates; no code from a folder runs."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from shoestring.base import open_model, safetensors_files
from shoestring.base.safetensors_files import common_type, outline, tensors, weight_files
from shoestring.contract.batch import Inputs
from shoestring.data import train_bpe
from shoestring.errors import ShoestringError, UsageError
from shoestring.model.transformer import Transformer
from shoestring.model.wrapped import Wrapped
from tests.base import making

NATIVE: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 24},
    "gpt_neox": {},
}
WRAPPED: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt2": ("gpt2", {}, "models of type 'gpt2' have no native counterpart"),
    "gemma": ("gemma", {"head_dim": 16}, "models of type 'gemma' have no native counterpart"),
    "a window": ("mistral", {"sliding_window": 8}, "a sliding window of 8 tokens"),
    "mixtral": ("mixtral", {"num_local_experts": 4}, "models of type 'mixtral'"),
}


def check_logits(theirs: Any, folder: Path) -> Any:
    opened = open_model(str(folder))
    ids = making.ids(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(opened.model.read(Inputs(ids)).logits(), theirs(ids).logits, atol=1e-4, rtol=1e-4)
    return opened


@pytest.mark.parametrize("kind", NATIVE)
def test_a_family_with_a_bridge_becomes_native(kind: str, tmp_path: Path) -> None:
    theirs = making.stock(kind, **NATIVE[kind])
    opened = check_logits(theirs, making.save(theirs, tmp_path))
    assert isinstance(opened.model, Transformer)
    assert opened.about.kind == "transformers"
    assert opened.about.values == {"model_type": kind, "native": True, "ends": [3]}
    assert opened.about.notes == ("it has no tokenizer.json and no tokenizer.model",)


@pytest.mark.parametrize("what", WRAPPED)
def test_others_are_wrapped_and_that_is_said(what: str, tmp_path: Path) -> None:
    kind, more, reason = WRAPPED[what]
    theirs = making.stock(kind, **more)
    opened = check_logits(theirs, making.save(theirs, tmp_path))
    assert isinstance(opened.model, Wrapped)
    assert opened.about.notes[0].startswith("transformers' own class computes: ")
    assert reason in opened.about.notes[0]


def test_several_files_and_types(tmp_path: Path) -> None:
    theirs = making.stock("llama").to(torch.bfloat16)
    making.save(theirs, tmp_path, max_shard_size="40KB")
    files = weight_files(tmp_path)
    assert len(files) > 2
    assert common_type(outline(files)) is torch.bfloat16
    state = theirs.state_dict()
    found = dict(tensors(outline(files)))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert open_model(str(tmp_path)).model.dtype is torch.bfloat16  # type: ignore[attr-defined]
    opened = open_model(str(tmp_path), torch.float32).model
    assert isinstance(opened, Transformer)
    assert torch.equal(opened.embedding.weight, state["model.embed_tokens.weight"].float())


def test_no_second_copy_of_all_weights_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the tensors that were read, the one being copied alone is alive, and files are opened anew again and again."""
    theirs = making.stock("llama", num_hidden_layers=6)
    making.save(theirs, tmp_path)
    stored = outline(weight_files(tmp_path))
    whole = sum(one.size for one in stored.values())
    monkeypatch.setattr(safetensors_files, "AT_ONCE", whole // 10)
    opened: list[Path] = []
    original = safetensors_files._opened

    def watched(file: Path) -> Any:
        opened.append(file)
        return original(file)

    monkeypatch.setattr(safetensors_files, "_opened", watched)
    sizes = []
    for name, tensor in tensors(stored):
        sizes.append(tensor.nbytes)
        del tensor
        assert name in stored
    assert len(opened) >= 10
    large = [size for size in sizes if 16 * size >= whole]
    assert large
    assert sizes[: len(large)] == sorted(large, reverse=True)


def test_the_end_the_template_and_the_tokenizer(tmp_path: Path) -> None:
    making.save(making.stock("llama", vocab_size=320), tmp_path)
    tokenizer = train_bpe([Path(making.__file__).read_text()], 320)
    tokenizer.save(tmp_path)
    opened = open_model(str(tmp_path))
    assert opened.tokenizer is not None
    assert opened.tokenizer.fingerprint == tokenizer.fingerprint
    assert opened.about.chat_template is None
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for written in ("one", [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "one"}]):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": written}))
        assert open_model(str(tmp_path)).about.chat_template == "one"
    (tmp_path / "chat_template.jinja").write_text("two")
    assert open_model(str(tmp_path)).about.chat_template == "two"
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7, 9999, "x", True]}))
    (tmp_path / "tokenizer_config.json").unlink()
    rules = json.loads((tmp_path / "tokenizer.json").read_text())
    rules["added_tokens"] = []
    rules["model"]["vocab"]["<other>"] = rules["model"]["vocab"].pop("<|endoftext|>", 0)
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    again = open_model(str(tmp_path))
    assert again.about.values["ends"] == [5, 7]
    assert again.tokenizer is not None
    assert again.tokenizer.end == 5


def test_a_tokenizer_that_cannot_be_used_leaves_the_model(tmp_path: Path) -> None:
    making.save(making.stock("llama", vocab_size=32), tmp_path)
    train_bpe(["text"], 300).save(tmp_path)
    opened = open_model(str(tmp_path))
    assert opened.tokenizer is None
    assert "its tokenizer cannot be used: it has 2" in opened.about.notes[0]


def test_a_digest_is_of_weights_and_configuration(tmp_path: Path) -> None:
    theirs = making.stock("llama")
    first, second = making.save(theirs, tmp_path / "a"), making.save(theirs, tmp_path / "b")
    digests = [open_model(str(folder)).about.digest for folder in (first, second)]
    assert digests[0] == digests[1]
    config = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert open_model(str(second)).about.digest != digests[0]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: making.save(making.stock(kind), tmp_path_factory.mktemp(kind)) for kind in ("llama", "gpt2")}


def changed(good: Path, folder: Path, **values: Any) -> Path:
    """A copy of a folder with other values in its config.json."""
    shutil.copytree(good, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))
    return folder


CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "code": ("llama", {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, "needs code that comes with it"),
    "a newer type": ("llama", {"model_type": "llama99"}, "has no models of type 'llama99'"),
    "no type": ("llama", {"model_type": 3}, "names no model_type"),
    "quantised": (
        "llama",
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        "quantised by another program",
    ),
    "layers": ("llama", {"num_hidden_layers": 1 << 30}, "num_hidden_layers = 1073741824"),
    "layers of another": ("gpt2", {"n_layer": 1 << 30}, "n_layer = 1073741824"),
    "experts": ("llama", {"model_type": "mixtral", "num_local_experts": 1 << 40}, "num_local_experts = "),
    "endless": ("llama", {"hidden_size": 1 << 60}, "hidden_size = "),
    "wide": ("gpt2", {"n_inner": 1 << 36}, "describes .* weights, and its files hold"),
    "a context": ("llama", {"max_position_embeddings": 1 << 30}, "a context of 1073741824 tokens"),
    "not causal": ("llama", {"model_type": "t5"}, "no causal language model|makes no"),
    "another width": ("llama", {"hidden_size": 32, "head_dim": 16}, "has the shape"),
    "another width of another": ("gpt2", {"n_embd": 32}, "have other shapes"),
    "fewer layers": ("llama", {"num_hidden_layers": 1}, "is the name of no weight"),
    "words": ("llama", {"hidden_size": "wide"}, "makes no"),
    "heads": ("llama", {"num_attention_heads": 7, "head_dim": None}, "makes no|must divide"),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_hostile_configurations_are_refused_in_one_line(what: str, good: dict[str, Path], tmp_path: Path) -> None:
    kind, values, complaint = CONFIGS[what]
    with pytest.raises(ShoestringError, match=complaint) as refused:
        open_model(str(changed(good[kind], tmp_path / "a", **values)))
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_what_would_fetch_or_run_code_is_left_out(good: dict[str, Path], tmp_path: Path) -> None:
    """A known type opens as ever, whatever else its configuration names."""
    folder = changed(
        good["gpt2"],
        tmp_path / "a",
        auto_map={"AutoModelForCausalLM": "evil--evil.Model"},
        attn_implementation="kernels-community/flash-attn",
        _attn_implementation_internal="kernels-community/flash-attn",
        transformers_weights="../evil.bin",
        fusion_config={"a": True},
        _name_or_path="../evil",
    )
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    opened = open_model(str(folder)).model
    assert isinstance(opened, Wrapped)
    assert opened.config._attn_implementation == "sdpa"
    assert not (tmp_path / "ran").exists()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["EVIL"],)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickles_are_not_opened(
    name: str, good: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "ran"))
    folder = changed(good["llama"], tmp_path / "a")
    (folder / name).write_bytes(pickle.dumps(Evil()))
    open_model(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=rf"{name} is not opened, as such files can run code"):
        open_model(str(folder))
    shutil.copy(folder / name, folder / "model.safetensors")
    with pytest.raises(ShoestringError, match="cannot be read"):
        open_model(str(folder))
    assert not (tmp_path / "ran").exists()


INDEXES: dict[str, tuple[Any, str]] = {
    "elsewhere": ({"weight_map": {"a": "../model.safetensors"}}, "no safetensors file of the folder"),
    "absolute": ({"weight_map": {"a": "/etc/passwd"}}, "no safetensors file of the folder"),
    "pickled": ({"weight_map": {"a": "pytorch_model.bin"}}, "no safetensors file of the folder"),
    "missing": ({"weight_map": {"a": "b.safetensors"}}, "the copy is not whole"),
    "no map": ({"weight_map": 3}, "no weight_map"),
    "nothing": ({"weight_map": {}}, "names no file"),
    "no object": ([], "an object is expected"),
}


@pytest.mark.parametrize("what", INDEXES)
def test_indexes_name_files_of_the_folder_alone(what: str, good: dict[str, Path], tmp_path: Path) -> None:
    index, complaint = INDEXES[what]
    folder = changed(good["llama"], tmp_path / "a")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ShoestringError, match=complaint):
        open_model(str(folder))


def test_damaged_weights(good: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(good["llama"], tmp_path / "a")
    path = folder / "model.safetensors"
    content, state = path.read_bytes(), load_file(path)
    for cut in (0, 5, 100, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(ShoestringError, match="cannot be read"):
            open_model(str(folder))
    for change, complaint in (
        ({"more": torch.zeros(3)}, "'more' is the name of no weight"),
        ({"model.norm.weight": torch.zeros(3)}, "'model.norm.weight' has the shape"),
        ({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}, "torch.int8"),
    ):
        path.unlink()  # its pages are mapped still
        save_file({**state, **change}, path)
        with pytest.raises(UsageError, match=complaint):
            open_model(str(folder))
    path.unlink()
    save_file({name: one for name, one in state.items() if name != "model.norm.weight"}, path)
    with pytest.raises(UsageError, match=r"1 weights of this llama model are missing: 'model\.norm\.weight'"):
        open_model(str(folder))


def test_missing_weights_of_a_wrapped_model(good: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(good["gpt2"], tmp_path / "a")
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if "c_proj" in name)
    left = {key: value.clone() for key, value in state.items() if key != name}
    (folder / "model.safetensors").unlink()
    save_file({**left, "filler": torch.zeros(9000)}, folder / "model.safetensors")
    with pytest.raises(UsageError, match=r"1 weights of this gpt2 model are missing: transformer\.h\.0"):
        open_model(str(folder))


def test_an_adapter_is_no_model(good: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(good["llama"], tmp_path / "a")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/evil"}')
    with pytest.raises(UsageError, match="an adapter of another model"):
        open_model(str(folder))


def test_transformers_says_nothing_on_the_screen(good: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    shown = transformers.utils.logging.is_progress_bar_enabled()
    open_model(str(good["gpt2"]))
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled() == shown


def test_a_head_that_is_not_where_it_is_looked_for_is_refused(tmp_path: Path) -> None:
    """OPT's class asks its decoder, and not the backbone that is said to be its own."""
    sizes = {"ffn_dim": 96, "word_embed_proj_dim": 64}
    theirs = making.stock("opt", **sizes)
    making.save(theirs, tmp_path)
    try:
        check_logits(theirs, tmp_path)
    except UsageError as error:
        assert "computes its head in a way that is not supported" in str(error)
