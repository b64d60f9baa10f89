"""A model that sees both ways and reads hidden tokens: what sees what, what it costs, and what is refused."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shoestring.config import Choice, build
from shoestring.contract.batch import HIDDEN, Inputs
from shoestring.contract.cost import Shape
from shoestring.contract.edit import Evidence
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.model.hf import to_transformers
from tests.flop_counting import CPU_ATTENTION

SIZES = {"layers": 2, "width": 16, "heads": 4, "key_value_heads": 2, "vocabulary": 30, "context": 24}


def made(seed: int = 1, **more: object) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(build(ModelConfig, {**SIZES, "causal": False, "hides": True, **more})).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def test_each_token_sees_all_of_its_own_text_and_nothing_else() -> None:
    model = made()
    text = torch.randint(30, (1, 12))
    with torch.no_grad():
        whole = model.read(Inputs(text)).hidden
        other = text.clone()
        other[0, 11] = (other[0, 11] + 1) % 30
        changed = model.read(Inputs(other)).hidden
        assert (whole - changed).abs().amax(-1).min() > 1e-6  # the last token reaches every place
        full = torch.ones(1, 12, 12, dtype=torch.bool)
        torch.testing.assert_close(model.read(Inputs(text, mask=full)).hidden, whole)
        padded = torch.cat([text, torch.full((1, 4), 7)], 1)
        torch.testing.assert_close(model.read(Inputs(padded, lengths=torch.tensor([12]))).hidden[:, :12], whole)
        two = torch.cat([text, other], 1)
        documents = torch.arange(24)[None] // 12
        packed = model.read(Inputs(two, torch.arange(24)[None] % 12, documents)).hidden
        torch.testing.assert_close(packed, torch.cat([whole, changed], 1))


def test_a_hidden_token_is_one_vector_and_nobody_can_tell_which_token_it_was() -> None:
    model = made()
    text = torch.randint(30, (1, 6))
    text[0, 2] = HIDDEN
    embedded = model.embedded(text)
    torch.testing.assert_close(embedded[0, 2], model.hidden_token.vector)
    torch.testing.assert_close(embedded[0, 3], model.embedding.weight[text[0, 3]])
    assert model.read(Inputs(text)).logits().shape == (1, 6, 30)


def test_operations_are_those_that_torch_counts() -> None:
    model = made().train()
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        model(torch.zeros(2, 9, dtype=torch.int64)).sum().backward()
    assert model.cost(Shape(2, 9, backward=True)).flops == counter.get_total_flops()


def test_places_that_are_read_again_find_the_rest_of_the_text_in_the_cache() -> None:
    model, text = made(), torch.randint(30, (2, 12))
    places = torch.tensor([[1, 4, 9], [0, 2, 11]])
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        whole = model.read(Inputs(text)).hidden
        cache = model.new_cache(2, 12)
        torch.testing.assert_close(model.read(Inputs(text), cache).hidden, whole)
        before = counter.get_total_flops()
        reading = model.read(Inputs(text.gather(1, places), places), cache)
    torch.testing.assert_close(reading.hidden, whole.gather(1, places[..., None].expand(-1, -1, 16)))
    assert reading.cost.flops == counter.get_total_flops() - before
    with pytest.raises(UsageError, match="read all of it first"):
        model.read(Inputs(text[:, :3], places), model.new_cache(2, 12))


def test_the_edit_makes_such_a_model_of_a_causal_one_and_it_is_built_again_from_its_configuration() -> None:
    model = Transformer(build(ModelConfig, SIZES)).eval()
    text = torch.randint(30, (1, 9))
    before = model(text)
    edit = Choice.of("surgery", "hidden_tokens", kind="edit", both_ways=False).build()
    model = edit.apply(model, edit.decide(model, Evidence(seed=3)))
    assert (model.about.causal, model.about.hides) == (True, True)
    assert torch.equal(model(text), before)
    with pytest.raises(UsageError, match="already"):
        edit.decide(model, Evidence())
    other = Transformer(build(ModelConfig, SIZES)).eval()
    edit = Choice.of("surgery", "hidden_tokens", kind="edit").build()
    other = edit.apply(other, edit.decide(other, Evidence(seed=3)))
    again = Transformer(other.config).eval()
    again.load_state_dict(other.state_dict())
    text[0, 4] = HIDDEN
    assert torch.equal(again(text), other(text))
    assert not torch.equal(other(text)[0, 0], model(text)[0, 0])


def test_what_is_not_for_it_is_refused() -> None:
    with pytest.raises(UsageError, match="layer 0 cannot be built: the token mixer lightning reads tokens in order"):
        made(token_mixer="lightning", key_value_heads=4)
    with pytest.raises(UsageError, match="sees both ways, and no stock class"):
        to_transformers(made())
    mixed = Transformer(build(ModelConfig, {**SIZES, "token_mixer": "lightning", "key_value_heads": 4}))
    edit = Choice.of("surgery", "hidden_tokens", kind="edit").build()
    with pytest.raises(UsageError, match="layer 0 has Lightning"):
        edit.apply(mixed, edit.decide(mixed, Evidence()))


def test_a_causal_model_that_reads_hidden_tokens_leaves_without_their_vector() -> None:
    model = made(causal=True).float()
    text = torch.randint(30, (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(to_transformers(model)(text).logits, model(text))
