"""Black-box tuning: a prompt that no gradient made, in two stages, the same for the same seed."""

from pathlib import Path

import pytest
import torch

from shoestring.contract.adapter import without_adapters
from shoestring.contract.batch import Inputs
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.tune.black_box import BlackBoxTuning, automatic_words
from shoestring.tune.cloze import ClozePattern
from shoestring.tune.prompt_embedding import with_prompt
from tests.tune.making import folder_of, opened

pytest.importorskip("cma", reason="the package cma is not installed")

TEXTS, LABELS = ["aaab", "zzzy", "abaa", "yzzz"], [0, 1, 0, 1]


def pattern(first: int) -> ClozePattern:
    return ClozePattern(lambda text: [first, *text.encode(), 7], [[300], [301]])


PATTERNS = [pattern(5), pattern(6)]
PLACEHOLDER = 511


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> LanguageModule:
    return opened(folder_of(request.param, tmp_path / "model"))


@torch.no_grad()
def test_a_prompt_is_read_where_its_tokens_are(model: LanguageModule) -> None:
    plain = torch.tensor([[1, 2, 3, 4]])
    before = model(plain)
    prompt = with_prompt(model, 2, PLACEHOLDER)
    torch.testing.assert_close(model(plain), before)  # no placeholder, no prompt
    vectors = model.get_submodule(model.anatomy().embedding).base(torch.tensor([8, 9]))  # type: ignore[operator]
    prompt.prompt.copy_(vectors)
    torch.testing.assert_close(model(torch.tensor([[*prompt.ids, 1, 2]])), model(torch.tensor([[8, 9, 1, 2]])))
    cache = model.new_cache(1, 8)
    model(torch.tensor([[*prompt.ids, 1]]), cache=cache)
    torch.testing.assert_close(model(torch.tensor([[2]]), cache=cache)[:, 0], model(torch.tensor([[8, 9, 1, 2]]))[:, 3])
    with without_adapters(model):
        assert not torch.allclose(model(torch.tensor([[*prompt.ids, 1]])), model(torch.tensor([[8, 9, 1]])))


def test_it_learns_without_a_gradient_and_alike_for_a_seed(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        made = opened(folder_of("llama", tmp_path / "model"))
        tuner = BlackBoxTuning(made, PLACEHOLDER, length=3, dimension=6, evolution=60, search=15, scale=3.0)
        before = {name: tensor.clone() for name, tensor in made.state_dict().items() if not name.endswith(".prompt")}
        tuned = tuner.fit(PATTERNS, TEXTS, LABELS)
        assert all(p.grad is None and not p.requires_grad for p in made.parameters())
        assert all(torch.equal(made.state_dict()[name], tensor) for name, tensor in before.items())
        first, evolved, last = tuned.losses
        assert first > evolved >= last
        assert tuned.spent.calls <= 2 + 60 + 15 + 10  # a generation is not cut in the middle
        assert tuned.spent.flops > 0
        found.append((tuned.losses, tuner.prompt.prompt.clone()))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_words_are_those_that_tell_classes_apart(model: LanguageModule) -> None:
    asked = PATTERNS[0].asked
    (one,), (other,) = automatic_words(model, asked, TEXTS, LABELS, 2)
    assert one != other
    with torch.no_grad():
        said = [model.read(Inputs(torch.tensor([asked(text)]))).logits()[0, -1].log_softmax(-1) for text in TEXTS]
    means = [(said[label] + said[label + 2]) / 2 for label in (0, 1)]
    likely = torch.stack(said).mean(0)
    allowed = (likely >= likely.median()).nonzero()[:, 0].tolist()
    assert one == max(allowed, key=lambda token: float(means[0][token] - means[1][token]))
    assert other == max(allowed, key=lambda token: float(means[1][token] - means[0][token]))


def test_what_does_not_fit_is_refused(model: LanguageModule) -> None:
    with pytest.raises(UsageError, match="is no token of a vocabulary of 512"):
        BlackBoxTuning(model, 512)
    with pytest.raises(UsageError, match="texts with a label each"):
        BlackBoxTuning(model, PLACEHOLDER, length=2).fit(PATTERNS, ["a"], [])
