import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shoestring.contract.cost import Shape
from shoestring.errors import ShoestringError, UsageError
from shoestring.lowbit import LowBitLinear, lower, lowered_layers, unpack
from shoestring.lowbit.activations import fake_tokens
from shoestring.lowbit.formats.ternary import Ternary
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.optim.muon import Muon
from shoestring.optim.partition import members
from shoestring.optim.row_blocks import row_blocks

TOKENS = torch.arange(20).view(2, 10) % 16


def model_of(tied: bool = True) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(2, 16, 2, vocabulary=16, context=16, tied=tied))
    for block in model.blocks:  # what writes to the residual stream starts at 0, and is silent
        nn.init.normal_(block.token_mixer.output.weight, std=0.2)  # type: ignore[union-attr, arg-type]
        nn.init.normal_(block.channel_mixer.output.weight, std=0.2)  # type: ignore[union-attr, arg-type]
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_matrices_of_the_blocks_are_lowered_and_nothing_else(tied: bool) -> None:
    model = model_of(tied)
    before = dict(model.named_parameters())
    roles = {member.name: member.role for member in members(model)}
    marks = {name: row_blocks(p) for name, p in before.items()}
    found = lower(model, Ternary())
    assert len(found.lowered) == 8
    assert all(name.startswith("blocks.") for name in found.lowered)
    assert found.kept == (("embedding",) if tied else ("embedding", "head"))
    assert found.weights == sum(p.numel() for name, p in before.items() if name.startswith("blocks.") and p.ndim == 2)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert {member.name: member.role for member in members(model)} == roles
    assert {name: row_blocks(p) for name, p in after.items()} == marks
    assert model.blocks[0].token_mixer.qkv.row_blocks == marks["blocks.0.token_mixer.qkv.weight"]  # type: ignore[union-attr]
    assert model.cost(Shape(1, 16)).flops == model_of(tied).cost(Shape(1, 16)).flops
    assert "blocks.*.token_mixer.qkv (2)" in found.describe()
    assert "in higher precision: embedding" in found.describe()


def test_it_computes_with_the_quantised_weights_and_not_when_inactive() -> None:
    plain, model = model_of(), model_of()
    lower(model, Ternary(scale="row"))
    dense = model_of()
    for name, module in dense.named_modules():
        if name.startswith("blocks.") and isinstance(module, nn.Linear):
            module.weight.data = Ternary(scale="row").quantise(module.weight).dequantise()
    assert torch.equal(model(TOKENS), dense(TOKENS))
    assert not torch.allclose(model(TOKENS), plain(TOKENS))
    for layer in lowered_layers(model):
        layer.active = False
    assert torch.equal(model(TOKENS), plain(TOKENS))


def test_a_layer_alone_rounds_its_input_too() -> None:
    torch.manual_seed(0)
    layer = LowBitLinear(8, 4, format=Ternary(), activations="int8")
    x = torch.randn(3, 8, requires_grad=True)
    out = layer(x)
    quantised = layer.quantise().dequantise()
    assert torch.equal(out, F.linear(fake_tokens(x), quantised, layer.bias))
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, quantised.sum(0).expand(3, 8))  # dL/dX = dL/dY W~
    torch.testing.assert_close(layer.weight.grad, fake_tokens(x).detach().sum(0).expand(4, 8))  # dL/dW = (dL/dY)^T X
    assert "Ternary" in repr(layer)
    assert "int8" in repr(layer)


def test_layers_named_to_be_kept_are_and_unknown_names_are_refused() -> None:
    model = model_of()
    found = lower(model, Ternary(), keep=("blocks.0.*", "*.channel_mixer.output"))
    assert set(found.lowered) == {
        f"blocks.1.{name}" for name in ("token_mixer.qkv", "token_mixer.output", "channel_mixer.gate_up")
    }
    assert "blocks.0.token_mixer.qkv" in found.kept
    assert type(model.blocks[0].token_mixer.qkv) is nn.Linear  # type: ignore[union-attr]
    with pytest.raises(UsageError, match=r"keep = 'blocks\.7\.\*' is the name of no linear layer"):
        lower(model_of(), Ternary(), keep=("blocks.7.*",))
    for nothing in (("blocks.*",), ("*",)):
        with pytest.raises(UsageError, match="no linear layer to lower"):
            lower(model_of(), Ternary(), keep=nothing)


def test_a_matrix_that_does_not_divide_is_named_and_nothing_is_changed() -> None:
    model = model_of()
    with pytest.raises(UsageError, match=r"^blocks\.0\.channel_mixer\.gate_up: group = 16 does not divide 24 columns"):
        lower(_with_hidden(24), Ternary(scale="group", group=16))
    with pytest.raises(UsageError, match=r"shards = 5 do not divide 48 rows"):
        lower(model, Ternary(shards=5))
    assert not list(lowered_layers(model))


def _with_hidden(columns: int) -> nn.Module:
    model = model_of()
    model.blocks[0].channel_mixer.gate_up = nn.Linear(columns, 4)  # type: ignore[union-attr]
    return model


def test_layers_and_weights_that_are_shared_stay_shared() -> None:
    model = nn.Module()
    model.one = nn.Linear(4, 4)
    model.inner = nn.Sequential(model.one, nn.Linear(4, 4))
    model.tokens = nn.Embedding(6, 4)
    model.inner[1].weight = model.one.weight
    model.out = nn.Linear(4, 6, bias=False)
    model.out.weight = model.tokens.weight
    found = lower(model, Ternary())
    assert model.one is model.inner[0]
    assert isinstance(model.one, LowBitLinear)
    assert model.inner[1].weight is model.one.weight
    assert type(model.out) is nn.Linear  # its weight is the embedding
    assert found.weights == 16
    assert found.lowered == ("one", "inner.1")


def test_subclasses_of_linear_layers_stay_and_a_second_lowering_finds_nothing() -> None:
    class Own(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = nn.Sequential(Own(4, 4), nn.Linear(4, 4))
    assert lower(model, Ternary()).kept == ("0",)
    with pytest.raises(UsageError, match="no linear layer"):
        lower(model, Ternary())
    with pytest.raises(UsageError, match="no linear layer"):
        lower(nn.Linear(4, 4), Ternary())


def test_a_model_of_transformers_keeps_its_head() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    for tied in (True, False):
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=tied))
        found = lower(model, Ternary())
        assert len(found.lowered) == 7
        assert set(found.kept) == {"model.embed_tokens", "lm_head"}
        assert model(TOKENS).logits.isfinite().all()


def test_unpacked_it_is_a_plain_model_with_the_same_outputs() -> None:
    model = model_of()
    lower(model, Ternary())
    expected, latent = model(TOKENS), copy.deepcopy(model)
    assert unpack(model) is model
    assert not list(lowered_layers(model))
    assert torch.equal(model(TOKENS), expected)
    assert torch.equal(latent(TOKENS), expected)  # a deep copy shares nothing with what was unpacked
    assert model.blocks[0].token_mixer.qkv.row_blocks  # type: ignore[union-attr]
    with torch.no_grad():
        next(lowered_layers(latent)).weight[0, 0] = torch.nan
    with pytest.raises(ShoestringError, match="NaN"):
        unpack(latent)


def test_state_goes_to_and_fro_between_plain_and_lowered() -> None:
    plain, model = model_of(), model_of()
    lower(model, Ternary())
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(0.5)
    model.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(model.state_dict(), strict=True)


def test_muon_moves_the_latent_weights_under_autocast() -> None:
    model = model_of()
    lower(model, Ternary(), "int8")
    latent = [layer.weight for layer in lowered_layers(model)]
    optimizer = Muon(latent, lr=0.05)
    losses = []
    for _ in range(12):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(TOKENS)
        loss = F.cross_entropy(logits.float().flatten(0, 1), (TOKENS.flatten() + 1) % 16)
        optimizer.zero_grad()
        loss.backward()
        assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in latent)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_compiled_blocks_work_once_for_each_precision_and_compute_the_same() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    model, plain = model_of(), model_of()
    for each in (model, plain):
        lower(each, Ternary(), "int8")
    counter = CompileCounterWithBackend("aot_eager")
    for block in model.blocks:
        block.compile(backend=counter, dynamic=False, fullgraph=True)
    for active in (False, True, False, True, False):
        for each in (model, plain):
            for layer in lowered_layers(each):
                layer.active = active
        found, expected = model(TOKENS), plain(TOKENS)
        torch.testing.assert_close(found, expected)
        found.square().mean().backward()
        expected.square().mean().backward()
    assert counter.frame_count == 2  # one for each precision, and both blocks share them
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
