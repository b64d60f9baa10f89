from pathlib import Path

import pytest
import torch
import transformers

from shoestring.config import Choice, build
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.model.hf import export, from_transformers, to_transformers

SMALL = {"layers": 2, "width": 32, "heads": 4, "vocabulary": 50, "context": 48}
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
}


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def trained(**more: object) -> Transformer:
    """A model away from its start, where the blocks add nothing."""
    torch.manual_seed(0)
    model = Transformer(build(ModelConfig, {**SMALL, **more}))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def test_there_and_back(model: Transformer) -> None:
    config = model.config
    if config.channel_mixer.name == "squared_relu" or (config.norm.name, config.channel_mixer.name) == (
        "rmsnorm",
        "gelu",
    ):
        with pytest.raises(
            UsageError, match=f"qwen2, qwen3: the channel mixer is 'swiglu', not '{config.channel_mixer.name}'"
        ):
            to_transformers(model)
        return
    inputs = torch.randint(50, (2, 48))
    state = torch.get_rng_state()
    theirs = to_transformers(model)
    back = from_transformers(theirs)
    assert torch.equal(torch.get_rng_state(), state)
    options = config.token_mixer.options
    plain = {"none": "llama", "qkv": "qwen2", "all": "gpt_neox"}[options["bias"]]
    assert theirs.config.model_type == ("qwen3" if options["qk_norm"] else plain)
    with torch.no_grad():
        close(theirs(inputs).logits, model(inputs))
        assert torch.equal(back(inputs), model(inputs))
    assert back.config == model.config
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        ("Qwen3Config", {"head_dim": 24, "rms_norm_eps": 1e-5}),
        ("LlamaConfig", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    ],
)
def test_from_a_model_of_theirs(settings: tuple[str, dict[str, object]], tied: bool) -> None:
    name, more = settings
    torch.manual_seed(0)
    config = getattr(transformers, name)(**SIZES, **more, tie_word_embeddings=tied)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
        model = from_transformers(theirs)
        inputs = torch.randint(60, (2, 40))
        close(model(inputs), theirs(inputs).logits)
        close(to_transformers(model)(inputs).logits, theirs(inputs).logits)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("LlamaConfig", {"mlp_bias": True}), "biases in its feed"),
        (("LlamaConfig", {"hidden_act": "gelu"}), "activation 'gelu'"),
        (("Qwen3Config", {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 16}), "sliding window"),
        (
            ("LlamaConfig", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
            "dynamic rot",
        ),
        (("MistralConfig", {"sliding_window": 16}), "sliding window of 16 tokens"),
        (("GPTNeoXConfig", {"hidden_act": "relu"}), "activation 'relu'"),
        (("GemmaConfig", {"head_dim": 8}), "type 'gemma': there is one for gpt_neox, llama, mistral, qwen2, qwen3"),
    ],
)
def test_what_this_model_has_not_is_refused(settings: tuple[str, dict[str, object]], words: str) -> None:
    name, more = settings
    theirs = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**SIZES, **more))
    with pytest.raises(UsageError, match=words):
        from_transformers(theirs)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"norm": {"name": "rmsnorm", "epsilon": 1e-5}}, "one epsilon"),
        (
            {"heads": 3, "head_width": 8, "token_mixer": {"name": "attention", "qk_norm": False, "bias": "all"}},
            "must divide",
        ),
    ],
)
def test_what_no_stock_class_has_is_refused(more: dict[str, object], words: str, tmp_path: Path) -> None:
    model = trained(**more)
    with pytest.raises(UsageError, match=words):
        export(model, None, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_exported_folder_loads(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tokenizer / "tokenizer.json"))
    (tokenizer / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    model = trained()
    export(model, tokenizer, tmp_path / "full", end=7)
    export(model, None, tmp_path / "half", torch.bfloat16)
    inputs = torch.randint(50, (1, 20))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    with torch.no_grad():
        close(loaded(inputs).logits, model(inputs))
    assert loaded.config.eos_token_id == loaded.generation_config.eos_token_id == 7
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "full").encode("b") == [1]
    half = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert half.dtype == torch.bfloat16
    assert (tmp_path / "half" / "model.safetensors").exists()
    assert next(model.parameters()).dtype == torch.float32
    with pytest.raises(UsageError, match="exists already"):
        export(model, None, tmp_path / "full")


@pytest.mark.parametrize("bias", ["qkv", "all"])
def test_an_exported_folder_of_another_family_loads_with_its_scales(bias: str, tmp_path: Path) -> None:
    """A bias in the last norm is scaled too."""
    parts = {"norm": "layernorm", "channel_mixer": {"name": "gelu", "bias": True}, "residual": "parallel"}
    mixer = {"name": "attention", "qk_norm": False, "bias": bias, "rotary_share": 0.5 if bias == "all" else 1.0}
    model = trained(token_mixer=mixer, output_scale=0.5, tied=bias == "qkv", **(parts if bias == "all" else {}))
    export(model, None, tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.model_type == {"qkv": "qwen2", "all": "gpt_neox"}[bias]
    inputs = torch.randint(50, (2, 20))
    with torch.no_grad():
        close(loaded(inputs).logits, model(inputs))


def test_a_changed_layer_is_not_exported_as_if_it_were_plain() -> None:
    model = trained()
    torch.nn.utils.parametrizations.weight_norm(model.get_submodule("blocks.0.channel_mixer.output"))
    with pytest.raises(UsageError, match=r"blocks\.0\.channel_mixer\.output.* fold what was changed"):
        to_transformers(model)
    with pytest.raises(UsageError, match="a mistral model cannot hold this one: queries and keys are not normalised"):
        to_transformers(trained(), "mistral")


def test_a_stock_model_generates_as_this_one(tmp_path: Path) -> None:
    mixer = Choice.of("model", "attention", kind="token mixer", qk_norm=False)
    model = trained(token_mixer=mixer).double()
    theirs = to_transformers(model)
    assert theirs.dtype == torch.float64
    inputs = torch.randint(50, (1, 4))
    got = theirs.generate(inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        for at in range(4, 16):
            assert model(got[:, :at])[0, -1].argmax() == got[0, at]
