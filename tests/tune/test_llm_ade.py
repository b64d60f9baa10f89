"""LLM-ADE: sensitivities by hand, copies that start as nothing, and what learns."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from shoestring.contract.edit import Evidence
from shoestring.errors import UsageError
from shoestring.tune.edits.llm_ade import LLMADE, By, angles, sensitivities
from tests.tune.making import evidence, folder_of, logits, opened


@pytest.mark.parametrize("by", ["angular", "gradient"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_copies_start_as_nothing_and_learn(kind: str, by: By, tmp_path: Path) -> None:
    model = opened(folder_of(kind, tmp_path / "model"))
    before, edit = logits(model), LLMADE(expand=1, train=1, by=by)
    decision = edit.decide(model, evidence(model))
    assert decision.spent.flops > 0
    torch.testing.assert_close(logits(model), before)  # deciding changed nothing
    made = edit.apply(model, decision)
    torch.testing.assert_close(logits(made), before, atol=1e-5, rtol=1e-5)
    layers = made.anatomy().layers
    assert made.about.layers == len(layers) == 3
    (expand,), (train,) = decision.values["expand"], decision.values["train"]
    learns = [all(p.requires_grad for p in made.get_submodule(name).parameters()) for name in layers]
    expected = [False, False, False]
    expected[expand + 1] = True
    expected[train + (train > expand)] = True
    assert learns == expected
    inside = {
        id(p) for name, does in zip(layers, learns, strict=True) if does for p in made.get_submodule(name).parameters()
    }
    assert {id(p) for p in made.parameters() if p.requires_grad} == inside
    cache = made.new_cache(1, 8)  # each layer has a part of its own
    with torch.no_grad():
        tokens = torch.arange(6).view(1, 6)
        whole = made(tokens)
        made(tokens[:, :3], cache=cache)
        torch.testing.assert_close(made(tokens[:, 3:], cache=cache), whole[:, 3:], atol=1e-4, rtol=1e-4)


def test_angles_are_those_of_their_formula(tmp_path: Path) -> None:
    model = opened(folder_of("llama", tmp_path / "model"))
    text = evidence(model)
    found, _ = angles(model, text)
    names = ("embedding", *model.anatomy().layers)
    with torch.no_grad():
        tapped = model.read(text.text[0].inputs, tap=names).tapped
    for layer in range(2):
        one, other = (tapped[name].double().flatten(0, 1) for name in names[layer : layer + 2])
        turned = [
            math.acos(float(a @ b) / float(a.norm() * b.norm())) / math.pi for a, b in zip(one, other, strict=True)
        ]
        assert found[layer] == pytest.approx(sum(turned) / len(turned), rel=1e-4)


def test_sensitivity_is_that_of_its_formula(tmp_path: Path) -> None:
    model = opened(folder_of("llama", tmp_path / "model"))
    text = evidence(model)
    found, _ = sensitivities(model, text)
    tokens = text.text[0]
    nn.functional.cross_entropy(model(tokens.inputs.values).flatten(0, 1), tokens.targets.flatten()).backward()
    for name, own in zip(model.anatomy().layers, found, strict=True):
        parameters = list(model.get_submodule(name).parameters())
        slope = sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None) ** 0.5
        size = sum(float(p.detach().square().sum()) for p in parameters) ** 0.5
        assert own == pytest.approx(slope / size, rel=1e-4)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = opened(folder_of("llama", tmp_path / "model"))
    with pytest.raises(UsageError, match="more than 2 layers"):
        LLMADE(expand=2, train=1).decide(model, evidence(model))
    with pytest.raises(UsageError, match="looks at text"):
        LLMADE(expand=1, train=1).decide(model, Evidence())
    with pytest.raises(ValueError, match="nothing would learn"):
        LLMADE(expand=0, train=0)
