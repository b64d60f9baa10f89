"""`input_scale` and `output_scale`: what they do, that every way to the logits has them, and that export keeps them."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from shoestring.config import build
from shoestring.contract.batch import Inputs
from shoestring.decode.generate import generate
from shoestring.decode.sampling import Sampling
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.model.hf import export, to_transformers
from shoestring.objective.cross_entropy import Fused, plain

SMALL = {"layers": 2, "width": 32, "heads": 4, "vocabulary": 50, "context": 24}
TIED = pytest.mark.parametrize("tied", [True, False])


def made(tied: bool = True, **scales: float) -> Transformer:
    """A model away from its start, of the same weights whatever its scales."""
    torch.manual_seed(0)
    model = Transformer(build(ModelConfig, {**SMALL, "tied": tied, **scales}))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model.double()


def ids() -> torch.Tensor:
    return torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(3))


@TIED
def test_at_one_they_are_not_there(tied: bool) -> None:
    torch.manual_seed(0)
    model = Transformer(build(ModelConfig, {**SMALL, "tied": tied}))
    x = model.embedding(ids())
    cos, sin = model.rotary(0, 12, None)
    for block in model.blocks:
        x = block(x, cos, sin)
    assert torch.equal(model.read(Inputs(ids())).hidden, model.norm(x))


@TIED
def test_the_output_scale_multiplies_the_logits(tied: bool) -> None:
    with torch.no_grad():
        torch.testing.assert_close(made(tied, output_scale=0.3)(ids()), 0.3 * made(tied)(ids()))


def test_the_input_scale_is_one_over_a_factor_on_what_blocks_add() -> None:
    scaled, model = made(input_scale=4.0), made()
    cos, sin = model.rotary(0, 12, None)
    with torch.no_grad():
        x = model.embedding(ids())
        for block in model.blocks:
            middle = x + 0.25 * block.token_mixer(block.token_norm(x), cos, sin)  # type: ignore[operator]
            x = middle + 0.25 * block.channel_mixer(block.channel_norm(middle))  # type: ignore[operator]
        # alike up to the epsilon of the norms
        torch.testing.assert_close(scaled.read(Inputs(ids())).hidden, model.norm(x), atol=1e-3, rtol=1e-3)
        assert (model.read(Inputs(ids())).hidden - model.norm(x)).abs().max() > 0.1


@pytest.mark.parametrize("cross_entropy", [plain, Fused(rows=5)])
def test_every_loss_and_its_gradients_have_the_scale(cross_entropy: object) -> None:
    model = made(output_scale=0.3).float()
    loss = cross_entropy(model.read(Inputs(ids())).hidden, model.get_output_embeddings().weight, ids())  # type: ignore[operator]
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    expected = F.cross_entropy(model(ids()).flatten(0, 1), ids().flatten())
    torch.testing.assert_close(loss, expected)
    for one, other in zip(gradients, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@TIED
def test_generation_has_the_scales(tied: bool) -> None:
    """At temperature 1 the scale changes the draw, so the ids of the scaled model are those of its own logits."""
    model = made(tied, input_scale=2.0, output_scale=0.3)
    drawn = list(generate(model, [1, 2, 3], Sampling(temperature=0), max_new_tokens=8))
    text = [1, 2, 3]
    with torch.no_grad():
        for token in drawn:
            assert token == model(torch.tensor([text]))[0, -1].argmax()
            text.append(token)


@TIED
@pytest.mark.parametrize(
    "scales", [{"output_scale": 0.3}, {"input_scale": 3.0}, {"input_scale": 2.0, "output_scale": 0.7}]
)
def test_export_multiplies_them_in(tied: bool, scales: dict[str, float], tmp_path: Path) -> None:
    import transformers

    model = made(tied, **scales)
    theirs = to_transformers(model)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids()).logits, model(ids()), atol=1e-6, rtol=1e-5)
    assert theirs.config.tie_word_embeddings == tied
    export(model.float(), None, tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids()).logits, model(ids()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["input_scale", "output_scale"])
@pytest.mark.parametrize("wrong", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_that_is_none_is_refused(name: str, wrong: float) -> None:
    with pytest.raises(ValueError, match=name):
        ModelConfig(**{name: wrong})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=name):
        build(ModelConfig, {name: wrong})
