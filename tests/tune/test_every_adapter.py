"""Every method that adds adapters, on models of unlike shapes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shoestring.config import Choice
from shoestring.contract.adapter import without_adapters
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.edit import Stepped
from shoestring.contract.model import LanguageModule
from shoestring.contract.objective import At
from shoestring.errors import UsageError
from shoestring.lowbit import lower
from shoestring.lowbit.formats.ternary import Ternary
from shoestring.method import methods
from shoestring.model import ModelConfig, Transformer
from shoestring.model.native_pass import NativePass
from shoestring.objective.cross_entropy import plain
from shoestring.objective.next_token import NextToken
from shoestring.optim.partition import members
from shoestring.shrink.packed_transformer import PackedTransformer
from shoestring.shrink.rounding import pack, ternaries
from shoestring.tune.adapter_edit import CHOSEN, AdapterEdit
from shoestring.tune.merging import merge_adapters
from shoestring.tune.several import Several, decision_of
from tests.tune.making import adapted, evidence, folder_of, logits, opened

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 3},
    "rslora": {"rank": 3},
    "dora": {"rank": 3},
    "adalora": {"rank": 2, "first_rank": 3},
    "road": {"group": 16, "each": 2},
    "compacter": {"n": 4, "bottleneck": 8},
    "key_value_bottleneck": {"codebooks": 4, "keys": 8, "width": 4},
}
MERGED = ["lora", "rslora", "dora", "adalora", "road"]
SHAPES = ("llama", "gpt2", "packed")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LanguageModule]:
    return {kind: opened(folder_of(kind, tmp_path_factory.mktemp(kind))) for kind in ("llama", "gpt2")}


def packed() -> LanguageModule:
    torch.manual_seed(1)
    whole = Transformer(ModelConfig(layers=2, width=64, heads=4, vocabulary=512, context=64))
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=parameter.shape[1] ** -0.5)
    lower(whole, Ternary(), "int8")
    return pack(whole.eval(), ternaries(whole), "ternary2", 16)


@pytest.fixture
def model(request: pytest.FixtureRequest, models: dict[str, LanguageModule]) -> LanguageModule:
    return packed() if request.param == "packed" else copy.deepcopy(models[request.param])


def edit(name: str, **more: Any) -> AdapterEdit:
    made: AdapterEdit = Choice.of("tune", name, kind="edit", **{**METHODS[name], **more}).build()
    return made


def test_every_adapter_has_a_place_in_this_table() -> None:
    known = {card.name for card in methods("tune", "edit") if issubclass(card.target, AdapterEdit)}  # type: ignore[arg-type]
    assert known == METHODS.keys()


@pytest.mark.parametrize("model", SHAPES, indirect=True)
@pytest.mark.parametrize("name", METHODS)
def test_a_tuned_model_starts_as_the_one_it_is_made_of(name: str, model: LanguageModule) -> None:
    before = logits(model)
    made, decision = adapted(model, edit(name), moved=False)
    torch.testing.assert_close(logits(made), before, atol=1e-5, rtol=1e-5)
    assert str(len(decision.values[CHOSEN])) in edit(name).describe(made, decision)


@pytest.mark.parametrize("model", SHAPES, indirect=True)
@pytest.mark.parametrize("name", METHODS)
def test_switched_off_it_computes_what_it_did(name: str, model: LanguageModule) -> None:
    before = logits(model)
    made, _ = adapted(model, edit(name))
    changed = logits(made)
    assert not torch.allclose(changed, before, atol=1e-3)
    with without_adapters(made):
        torch.testing.assert_close(logits(made), before)
    assert torch.equal(logits(made), changed)


@pytest.mark.parametrize("model", SHAPES, indirect=True)
@pytest.mark.parametrize("name", MERGED)
def test_merged_equals_unmerged(name: str, model: LanguageModule) -> None:
    rounds = isinstance(model, PackedTransformer)  # activations to int8, which a plain matrix does not
    made, decision = adapted(model, edit(name))
    layers: dict[str, Any] = {place: made.get_submodule(place) for place in decision.values[CHOSEN]}
    kinds = {place: type(layer.base) for place, layer in layers.items()}
    unmerged = logits(made)
    folded = edit(name).fold(made)
    torch.testing.assert_close(logits(folded), unmerged, atol=0.2 if rounds else 1e-4, rtol=0.02 if rounds else 1e-4)
    if not rounds:  # a transposed layer is one again
        assert all(type(folded.get_submodule(place)) is kind for place, kind in kinds.items())


@pytest.mark.parametrize("model", SHAPES, indirect=True)
@pytest.mark.parametrize("name", METHODS)
def test_a_model_that_only_writes_has_its_adapters_merged_where_one_matrix_is_the_same(
    name: str, model: LanguageModule
) -> None:
    beneath = isinstance(model, PackedTransformer)
    made, decision = adapted(model, edit(name))
    before, count = logits(made), len(decision.values[CHOSEN])
    assert merge_adapters(made) == (count if name in MERGED and not beneath else 0)
    torch.testing.assert_close(logits(made), before, atol=1e-4, rtol=1e-4)
    if isinstance(made, Transformer) and not beneath:
        assert isinstance(made.native, NativePass) == (name in MERGED)


@pytest.mark.parametrize("model", ["llama", "gpt2"], indirect=True)
@pytest.mark.parametrize("name", [n for n in METHODS if n not in MERGED])
def test_what_no_matrix_computes_is_not_merged(name: str, model: LanguageModule) -> None:
    made, _ = adapted(model, edit(name))
    before = logits(made)
    with pytest.raises(UsageError, match="more than one matrix can"):
        edit(name).fold(made)
    assert torch.equal(logits(made), before)


@pytest.mark.parametrize("model", SHAPES, indirect=True)
@pytest.mark.parametrize("name", METHODS)
def test_adapters_alone_learn(name: str, model: LanguageModule) -> None:
    """On every base, a packed one among them, whose matrices stay as they are."""
    one = edit(name)
    made, _ = adapted(model, one, moved=False)
    fixed = {
        name: p.detach().clone() for name, p in made.state_dict().items() if name.rpartition(".")[0].endswith(".base")
    }
    optimiser = torch.optim.Adam([member.parameter for member in members(made)], lr=0.03)
    tokens = torch.randint(512, (2, 20), generator=torch.Generator().manual_seed(1))
    batch, objective, losses = Batch(Inputs(tokens[:, :-1]), tokens[:, 1:]), NextToken(plain), []
    for step in range(8):
        at = At(step, step / 8)
        loss = objective(made, batch, at).mean
        loss.backward()
        if isinstance(one, Stepped):
            one.before_step(made, at)
        optimiser.step()
        if isinstance(one, Stepped):
            one.after_step(made, at)
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(made.state_dict()[key], value) for key, value in fixed.items())


@pytest.mark.parametrize("model", SHAPES, indirect=True)
@pytest.mark.parametrize("name", METHODS)
def test_adapters_stand_upon_adapters(name: str, model: LanguageModule) -> None:
    first, _ = adapted(model, edit("lora"))
    before = logits(first)
    second, _ = adapted(first, edit(name), moved=False)
    torch.testing.assert_close(logits(second), before, atol=1e-5, rtol=1e-5)
    trained = {member.name for member in members(second)}
    assert trained
    assert not any(".base." in key for key in trained)


@pytest.mark.parametrize("model", SHAPES, indirect=True)
def test_eight_adapters_in_one_batch_equal_eight_single_runs(model: LanguageModule) -> None:
    kinds = [*METHODS, "compacter"]
    tokens = torch.randint(512, (len(kinds) + 1, 12), generator=torch.Generator().manual_seed(8))
    single, kept = [], []
    for place, name in enumerate(kinds):
        torch.manual_seed(place)
        made, decision = adapted(packed() if isinstance(model, PackedTransformer) else copy.deepcopy(model), edit(name))
        with torch.no_grad():
            for member in members(made):
                member.parameter.add_(torch.randn_like(member.parameter) * 0.05)
            single.append(made(tokens[place : place + 1]))
        own = decision_of(made, edit(name), decision)
        kept.append((edit(name), own))
    with torch.no_grad():
        single.append(model(tokens[-1:]))
        several = Several(model)
        for place, (one, decision) in enumerate(kept):
            several.add(f"number {place}", one, decision)
        with several.rows([*(f"number {place}" for place in range(len(kinds))), None]):
            together = several.model(tokens)
        torch.testing.assert_close(together, torch.cat(single), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(several.model(tokens)[-1:], single[-1])  # no rows named: the base alone


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_several_refuses_names_it_does_not_have(model: LanguageModule) -> None:
    one = edit("lora")
    decision = one.decide(model, evidence(model))
    several = Several(model)
    several.add("poet", one, decision)
    with pytest.raises(UsageError, match="no adapter is named 'poem': did you mean 'poet'"), several.rows(["poem"]):
        pass
    with pytest.raises(UsageError, match="there is an adapter named 'poet'"):
        several.add("poet", one, decision)
    with pytest.raises(UsageError, match="1 adapters were named for a batch of 2 rows"), several.rows(["poet"]):
        logits(model)


def test_a_model_without_adapters_has_none_to_switch_off() -> None:
    with pytest.raises(ValueError, match="no adapters"), without_adapters(nn.Linear(2, 2)):
        pass


@pytest.mark.parametrize("model", ["gpt2"], indirect=True)
@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("lora", {"targets": ("*.nothing",)}, "names no matrix"),
        ("road", {"group": 10}, "do not divide into groups of 10"),
        ("compacter", {"n": 3, "bottleneck": 6}, "n = 3 does not divide its 64 outputs"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, options: dict[str, Any], said: str, model: LanguageModule) -> None:
    with pytest.raises(UsageError, match=said):
        edit(name, **options).decide(model, evidence(model))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("adalora", {"rank": 4, "first_rank": 3}, "ranks only fall"),
        ("adalora", {"start": 0.5, "rest": 0.5}, "no share in which ranks fall"),
        ("road", {"group": 7}, "are no pairs"),
        ("compacter", {"n": 4, "bottleneck": 6}, "does not divide bottleneck"),
    ],
)
def test_options_that_do_not_go_together_are_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        edit(name, **options)


def test_keys_are_found_in_text_alone(tmp_path: Path) -> None:
    model = opened(folder_of("llama", tmp_path / "model"))
    from shoestring.contract.edit import Evidence

    with pytest.raises(UsageError, match="finds its keys in text"):
        edit("key_value_bottleneck").decide(model, Evidence())
    found = edit("key_value_bottleneck").decide(model, evidence(model))
    assert found.spent.read == 128
    assert found.spent.flops
