import copy
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.contract.batch import Inputs
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from tests.decode.random_models import native
from tests.model.conftest import SHAPES


def ids(model: Transformer, *shape: int) -> Tensor:
    return torch.randint(model.config.vocabulary, shape, generator=torch.Generator().manual_seed(0))


def test_logits_see_the_past_alone(model: Transformer) -> None:
    inputs = ids(model, 2, 10)
    logits = model(inputs)
    assert logits.shape == (2, 10, 50)
    changed = inputs.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 50
    other = model(changed)
    torch.testing.assert_close(other[:, :6], logits[:, :6])
    assert (other[:, 6:] - logits[:, 6:]).abs().amax(-1).min() > 1e-4
    torch.testing.assert_close(model.read(Inputs(inputs)).hidden @ model.get_output_embeddings().weight.T, logits)


def test_every_parameter_takes_a_gradient_and_tied_is_one_matrix(model: Transformer) -> None:
    F.cross_entropy(model(ids(model, 2, 12)).flatten(0, 1), ids(model, 2, 12).flatten()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert (model.get_output_embeddings().weight is model.embedding.weight) == model.config.tied
    assert sum("embedding" in name or "head" in name for name in model.state_dict()) == (1 if model.config.tied else 2)


def test_reading_in_pieces_gives_the_logits_of_reading_at_once(model: Transformer) -> None:
    inputs = ids(model, 3, 40)
    cache = model.new_cache(3, 48)
    with torch.no_grad():
        pieces = [model(piece, cache=cache) for piece in inputs.split([17, 1, 1, 12, 1, 8], 1)]
        torch.testing.assert_close(torch.cat(pieces, 1), model(inputs), atol=1e-4, rtol=1e-4)
    assert cache.length == 40
    assert cache.layers[1].keys.shape == (3, model.config.key_value_heads, 48, model.config.head_width)


def test_a_packed_row_is_its_documents_apart(model: Transformer) -> None:
    """The loss and every gradient of documents packed in one row are those of the documents one by one."""
    model = model.double()
    lengths = [5, 1, 11, 7]
    inputs, targets = ids(model, 2, 24), ids(model, 2, 25)[:, 1:]
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(2, -1)
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)).expand(2, -1)
    packed = F.cross_entropy(model(inputs, positions, documents).flatten(0, 1), targets.flatten(), reduction="sum")
    gradients = torch.autograd.grad(packed, list(model.parameters()))
    apart = sum(
        F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")
        for x, y in zip(inputs.split(lengths, 1), targets.split(lengths, 1), strict=True)
    )
    torch.testing.assert_close(packed, apart)
    for got, expected in zip(gradients, torch.autograd.grad(apart, list(model.parameters())), strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-8)
    unmasked = F.cross_entropy(model(inputs, positions).flatten(0, 1), targets.flatten(), reduction="sum")
    assert abs(unmasked - packed) > 1e-3


@pytest.mark.parametrize("tied", [True, False])
def test_the_first_loss_is_near_that_of_guessing(tied: bool) -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(layers=6, width=128, vocabulary=1000, context=64, tied=tied))
    inputs = ids(model, 4, 64)
    loss = F.cross_entropy(model(inputs).flatten(0, 1), ids(model, 5, 64)[1:].flatten())
    assert math.log(1000) < loss < math.log(1000) + 1


def test_a_new_model_is_its_embedding_and_its_inner_features_have_unit_scale(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Transformer(config)
    inputs = ids(model, 4, 48)
    assert torch.equal(model.read(Inputs(inputs)).hidden, model.norm(model.embedding(inputs)))
    mixer: Any = model.blocks[0].token_mixer
    inner = mixer.qkv(model.norm(model.embedding(inputs)))
    assert 0.8 < inner.square().mean().sqrt() < 1.2
    model(inputs).square().sum().backward()
    assert all(block.channel_mixer.output.weight.grad.abs().sum() > 0 for block in model.blocks)  # type: ignore[operator, union-attr]


def test_bfloat16_autocast_trains_near_float32_without_a_warning(model: Transformer) -> None:
    inputs = ids(model, 2, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.autocast("cpu", torch.bfloat16):
            low = model(inputs)
        low.float().square().mean().backward()
    full = model(inputs)
    assert low.dtype == torch.bfloat16
    assert (low - full).square().mean() < 1e-3 * full.square().mean()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(
    "config", [{"key_value_heads": 2}, SHAPES["GPT-NeoX"]], indirect=True, ids=["grouped", "GPT-NeoX"]
)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_blocks_compile_whole_and_agree(model: Transformer, backend: str) -> None:
    torch.compiler.reset()  # what other tests have compiled of these blocks counts towards torch's limit
    inputs, documents = ids(model, 2, 12), torch.arange(12).expand(2, -1) // 5
    compiled = copy.deepcopy(model)
    for block in compiled.blocks:
        block.compile(backend=backend, fullgraph=True)
    for given in (None, documents):
        expected, got = model(inputs, documents=given), compiled(inputs, documents=given)
        torch.testing.assert_close(got, expected)
        model.zero_grad()
        compiled.zero_grad()
        expected.square().sum().backward()
        got.square().sum().backward()
        for ours, theirs in zip(compiled.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        cache = compiled.new_cache(2, 12)
        pieces = [compiled(piece, cache=cache) for piece in inputs.split([6, 5, 1], 1)]
        torch.testing.assert_close(torch.cat(pieces, 1), model(inputs), atol=1e-5, rtol=1e-4)
    torch.compiler.reset()


def test_too_many_tokens_are_refused() -> None:
    model = Transformer(ModelConfig(layers=1, width=16, heads=2, vocabulary=10, context=8))
    with pytest.raises(UsageError, match="9 tokens do not fit in a context of 8"):
        model(ids(model, 1, 9))
    cache = model.new_cache(1, 4)
    with torch.no_grad():
        model(ids(model, 1, 3), cache=cache)
        with pytest.raises(UsageError, match="5 tokens do not fit in a context of 4"):
            model(ids(model, 1, 2), cache=cache)
        with pytest.raises(UsageError, match="one sequence a row"):
            model(ids(model, 1, 1), documents=ids(model, 1, 1), cache=cache)


def test_a_copy_works_out_everything_from_its_own_parts() -> None:
    """A model that was read has native tables of its tensors; a copy must not read the original's."""
    model, tokens = native(), Inputs(torch.tensor([[1, 2, 3]]))
    with torch.no_grad():
        before = model.read(tokens).hidden
        made = copy.deepcopy(model)
        for weight in made.parameters():
            weight.mul_(1.5)
        assert torch.equal(model.read(tokens).hidden, before)
        assert not torch.allclose(made.read(tokens).hidden, before)
