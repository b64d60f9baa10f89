"""Every registered part through one model: cached, packed, counted, saved; a new part is here without a new test."""

import copy
import functools
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch

from shoestring.config import Choice, build
from shoestring.contract.anatomy import Slice
from shoestring.contract.batch import Inputs
from shoestring.contract.cost import Shape
from shoestring.contract.edit import Evidence
from shoestring.contract.model import causally
from shoestring.errors import UsageError
from shoestring.method import methods
from shoestring.model import ModelConfig, Transformer
from shoestring.plan.sizes import flops_per_token, parameters
from tests.flop_counting import OperationCounter

BASE: dict[str, Any] = {"layers": 3, "width": 16, "heads": 2, "vocabulary": 30, "context": 24, "tied": False}
OPTIONS: dict[str, dict[str, Any]] = {
    "lightning": {"chunk": 4},
    "mamba2": {"chunk": 4, "state": 6},
    "gated_delta": {"chunk": 4},
    "group_rational": {"groups": 2},
    "lact": {"chunk": 4, "rate": 0.5},
    "infllm_v2": {"block": 2, "window_blocks": 2, "top_blocks": 1, "dense_length": 5},
    "s2_attention": {"block": 2, "window_blocks": 2, "stride": 2},
    "lavo": {"window": 3, "directions": 5},
    "sha_rnn": {"attention": True, "inner": 12},
    "srwm": {"chunk": 4},
    "long_convolution": {"length": 7, "smooth": 1},
    "fixed_point": {"tolerance": 0.1, "most": 3},
    "recurrent_memory": {"segment": 4, "memory": 2},
    "mosa": {"sparse_heads": 3, "share": 0.3},
    "lolcats": {"features": 6, "window": 4},
    "supra": {"chunk": 4},
    "efficient_attention": {"kernel": 5},
    "nano": {"rank": 5},
    "byte_pool": {"patch": 4},
    "hash_projection": {"features": 8, "hashes": 5, "unit": 3, "window": 2},
    "space_byte": {"words": list(range(12, 30))},
    "scone": {"ngrams": ["0 0", "3 4", "5 6", "5 6 7", *(f"{one} {two}" for one in range(8, 20) for two in range(30))]},
}
"""Small sizes, so that a short text has several chunks."""
BY_THE_TEXT = {
    "duo",
    "fixed_point",
    "mosa",
    "span mixture_of_depths",
    "span space_byte",
    "router expert_choice",
    "running states of some tokens",
}
"""Parts whose operations or state depend on the text: without a backward pass the cost is the most they can be."""


def shapes() -> Iterator[tuple[str, dict[str, Any]]]:
    """(what it is called, what it changes of BASE), of each part that is registered."""
    for card in methods("model", "token mixer"):
        mixer = {"name": card.name, **OPTIONS.get(card.name, {})}
        yield card.name, {"pattern": [{"at": "::2", "token_mixer": mixer}]}  # beside attention
    for card in methods("model", "channel mixer"):
        mixer = {"name": card.name, **OPTIONS.get(card.name, {})}
        yield card.name, {"pattern": [{"at": "1", "channel_mixer": mixer}]}
    for card in methods("model", "router"):
        router = {"name": card.name, **OPTIONS.get(card.name, {})}
        mixer = {"name": "moe", "experts": 4, "router": router, "shared": 1}
        yield f"router {card.name}", {"channel_mixer": mixer}
    yield "router before attention", {"channel_mixer": {"name": "moe", "experts": 4, "before_attention": True}}
    follows = {"name": "moe", "experts": 4, "router": {"name": "pre_gate", "leads": False}}
    leads = [{"at": "0", "channel_mixer": {**follows, "router": "pre_gate"}}]
    yield "one router for all layers", {"channel_mixer": follows, "pattern": leads}
    for card in methods("model", "norm"):
        yield f"norm {card.name}", {"norm": card.name}
    for card in methods("model", "residual"):
        yield f"residual {card.name}", {"residual": card.name}
    for card in methods("model", "span"):
        where = {"at": "0:2", "tied": True} if getattr(card.target, "replaces_embedding", False) else {"at": "1:3"}
        span = {"at": where.pop("at"), "name": card.name, **OPTIONS.get(card.name, {})}
        yield f"span {card.name}", {"span": [span], **where}
    tied = {"channel_mixer": {"name": "tied", "leads": False}}
    yield "tied weights", {**tied, "pattern": [{"at": "0", "channel_mixer": "tied"}]}
    pooled = {"at": "1:", "name": "byte_pool", "patch": 2}
    yield "tied weights of patches", {**tied, "pattern": [{"at": ":2", "channel_mixer": "tied"}], "span": [pooled]}
    yield "running states of patches", {"token_mixer": {"name": "gated_delta", "chunk": 4}, "span": [pooled]}
    for card in methods("model", "embedding"):
        embedding = {"name": card.name, **OPTIONS.get(card.name, {})}
        yield f"embedding {card.name}", {"embedding": embedding, "tied": True}
        yield f"embedding {card.name} beside a head", {"embedding": embedding}
    yield "a loop of a running state", {"token_mixer": {"name": "lightning"}, "span": [{"at": "0:2", "name": "loop"}]}
    yield (
        "running states of some tokens",
        {"token_mixer": {"name": "gated_delta", "chunk": 4}, "span": [{"at": "1", "name": "mixture_of_depths"}]},
    )
    by_products = {"name": "long_convolution", "length": 30, "by": "monarch"}
    yield "a convolution by matrix products", {"pattern": [{"at": "::2", "token_mixer": by_products}]}
    yield "rotary tables of two kinds", {"pattern": [{"at": "1", "heads": 1, "token_mixer": {"rope_theta": 100.0}}]}


SHAPES = dict(shapes())


@functools.cache
def built(name: str) -> Transformer:
    """A model away from its start, in float64 and evaluation mode."""
    torch.manual_seed(1)
    model = Transformer(build(ModelConfig, {**BASE, **SHAPES[name]})).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model.eval()


def shared(name: str) -> Transformer:
    """The same model for all tests, which may only read by it."""
    torch.manual_seed(2)
    return built(name)


def made(name: str) -> Transformer:
    """A model for one test."""
    return copy.deepcopy(shared(name))


@pytest.fixture(params=list(SHAPES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_cached_decoding_is_the_whole_pass_in_rows_of_different_lengths(name: str) -> None:
    model = shared(name)
    text = torch.randint(30, (3, 24))
    lengths = [24, 12, 17]
    with torch.no_grad():
        whole = model.read(Inputs(text)).hidden
        cache, held = model.new_cache(3, 24), [0, 0, 0]
        for new in ([9, 3, 6], [1, 1, 1], [6, 0, 3], [1, 1, 1], [7, 7, 6]):
            most = max(new)
            values = torch.zeros(3, most, dtype=torch.int64)
            for row, (first, count) in enumerate(zip(held, new, strict=True)):
                values[row, :count] = text[row, first : first + count]
            ragged = None if min(new) == most else torch.tensor(new)
            found = model.read(Inputs(values, lengths=ragged), cache).hidden
            for row, (first, count) in enumerate(zip(held, new, strict=True)):
                torch.testing.assert_close(found[row, :count], whole[row, first : first + count])
            held = [first + count for first, count in zip(held, new, strict=True)]
        assert held == lengths == cache.lengths


def test_a_snapshot_takes_a_draft_back_and_rows_can_be_taken(name: str) -> None:
    model = shared(name)
    text = torch.randint(30, (2, 16))
    with torch.no_grad():
        cache = model.new_cache(2, 24)
        model.read(Inputs(text[:, :9]), cache)
        before = cache.snapshot()
        wanted = model.read(Inputs(text[:, 9:12]), cache).hidden
        cache.restore(before)
        model.read(Inputs(torch.randint(30, (2, 4))), cache)
        cache.restore(before)
        other = cache.take(torch.tensor([1, 0, 1]))
        torch.testing.assert_close(model.read(Inputs(text[:, 9:12]), cache).hidden, wanted)
        torch.testing.assert_close(model.read(Inputs(text[[1, 0, 1], 9:12]), other).hidden, wanted[[1, 0, 1]])


def test_evaluation_and_decoding_look_at_no_later_token_while_training(name: str) -> None:
    model = made(name)
    text = torch.randint(30, (2, 12))
    with torch.no_grad():
        wanted = model.read(Inputs(text)).hidden
        model.train()
        with causally(model):
            torch.testing.assert_close(model.read(Inputs(text)).hidden, wanted)
        torch.testing.assert_close(model.read(Inputs(text), model.new_cache(2, 24)).hidden, wanted)
        assert all(module.training for module in model.modules())


def test_packed_documents_are_as_separate_ones(name: str) -> None:
    model = shared(name)
    text = torch.randint(30, (2, 22))
    documents, positions = torch.zeros(2, 22, dtype=torch.int64), torch.zeros(2, 22, dtype=torch.int64)
    cuts = [[0, 5, 6, 22], [0, 8, 15, 22]]
    for row, ends in enumerate(cuts):
        for number, (first, last) in enumerate(pairwise(ends)):
            documents[row, first:last], positions[row, first:last] = number, torch.arange(last - first)
    with torch.no_grad():
        packed = model.read(Inputs(text, positions, documents)).hidden
        for row, ends in enumerate(cuts):
            for first, last in pairwise(ends):
                alone = model.read(Inputs(text[row : row + 1, first:last])).hidden
                torch.testing.assert_close(packed[row, first:last], alone[0])


def test_what_comes_later_changes_nothing(name: str) -> None:
    model = shared(name)
    text = torch.randint(30, (1, 20))
    other = text.clone()
    other[:, 13:] = (other[:, 13:] + 1) % 30
    with torch.no_grad():
        one, two = (model.read(Inputs(values)).hidden for values in (text, other))
    torch.testing.assert_close(one[:, :13], two[:, :13])
    assert not torch.allclose(one[:, 13:], two[:, 13:])


@pytest.mark.parametrize("length", [3, 22])
def test_operations_are_those_that_torch_counts(name: str, length: int) -> None:
    model = made(name).train()
    with OperationCounter() as counter:
        model(torch.zeros(2, length, dtype=torch.int64)).sum().backward()
    counted = counter.get_total_flops()
    assert model.cost(Shape(2, length, backward=True)).flops == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(("past", "new"), [(0, 9), (9, 1), (9, 6)])
def test_operations_of_cached_decoding(name: str, past: int, new: int) -> None:
    model = shared(name)
    cache = model.new_cache(2, 24)
    with torch.no_grad():
        if past:
            model.read(Inputs(torch.zeros(2, past, dtype=torch.int64)), cache)
        with OperationCounter() as counter:
            reading = model.read(Inputs(torch.zeros(2, new, dtype=torch.int64)), cache)
    if name in BY_THE_TEXT:
        assert reading.cost.flops >= counter.get_total_flops() * 0.99
    else:
        assert reading.cost.flops == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_what_a_cache_holds_is_what_the_cost_says(name: str) -> None:
    model = shared(name)
    cost, weights = model.cost(Shape(2, 0, 24)), sum(p.nbytes for p in model.state_dict().values())
    state = sum(getattr(layer, "nbytes", 0) for layer in model.new_cache(2, 24).layers)
    if name in BY_THE_TEXT:
        assert cost.held - weights >= state
    else:
        assert cost.held - weights == state


def test_the_plan_counts_what_the_model_has(name: str) -> None:
    config = build(ModelConfig, {**BASE, **SHAPES[name]})
    model = Transformer(config)
    assert parameters(config) == sum(p.numel() for p in model.parameters())
    assert flops_per_token(config) == pytest.approx(model.cost(Shape(1, 24, backward=True)).flops / 24)


def test_every_weight_lies_along_an_axis_of_width(name: str) -> None:
    model = shared(name)
    known = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    width = model.anatomy().axes("width")[0]
    covered = {one.name for one in width.slices}
    for one in width.slices:
        assert known[one.name].shape[one.dim] >= one.start + width.size * one.unit, one
    for kind in ("head", "key_value_head", "hidden", "expert", "state"):
        for axis in model.anatomy().axes(kind):
            for piece in axis.slices:
                assert known[piece.name].shape[piece.dim] >= piece.start + axis.size * piece.unit, (kind, piece)
                assert isinstance(piece, Slice)
    matrices = {name for name, p in model.named_parameters() if p.ndim > 1 and 16 in p.shape and "blocks" in name}
    assert {name for name in matrices if not name.endswith(("kernel", "taps"))} <= covered


def test_it_learns_and_comes_back_from_a_state(name: str) -> None:
    """Each weight has a gradient, two steps with a copy between are two steps, and nothing is hidden outside the weights."""
    torch.manual_seed(0)
    config = build(ModelConfig, {**BASE, **SHAPES[name]})
    model = Transformer(config)
    text = torch.randint(30, (4, 23))

    def step(model: Transformer) -> float:
        optimizer = torch.optim.SGD(model.parameters(), 0.3)
        reading = model.read(Inputs(text[:, :-1]))
        mean = torch.nn.functional.cross_entropy(reading.logits().flatten(0, 1), text[:, 1:].flatten())
        auxiliary = reading.auxiliary()
        (mean if auxiliary is None else mean + auxiliary).backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(mean.detach())

    first = [step(model) for _ in range(3)]
    torch.manual_seed(5)
    other = Transformer(config)
    other.load_state_dict(model.state_dict())
    assert step(model) == step(other) < first[0]
    model.zero_grad()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    reading = model.read(Inputs(text))
    (reading.logits().square().sum() + (reading.auxiliary() or 0)).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [n for n in silent if not n.startswith(("head", "spans"))] == []


def test_a_model_without_patterns_is_as_it_was() -> None:
    model = Transformer(ModelConfig(layers=2, width=16, heads=2, vocabulary=30, context=8))
    assert model.stack is None
    assert not [n for n in model.state_dict() if n.startswith(("spans", "more_"))]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pattern": [{"at": "7", "heads": 1}]}, "pattern 1: at = '7': layer 7 is none of the 3"),
        ({"pattern": [{"at": "3:", "heads": 1}]}, "names none of the 3 layers"),
        ({"pattern": [{"at": "x", "heads": 1}]}, "a number or a slice of layers is needed"),
        ({"pattern": [{"at": "0"}]}, "changes nothing"),
        ({"pattern": [{"at": "1", "heads": 3}]}, r"layer 1, of pattern 1 .*heads must divide width"),
        ({"pattern": [{"at": "1", "tokenmixer": "attention"}]}, "unknown key 'pattern.0.tokenmixer'"),
        ({"span": [{"at": "0,2", "name": "loop"}]}, "a span is a run of layers"),
        ({"span": [{"at": "0:2", "name": "loop"}, {"at": "1:3", "name": "loop"}]}, "layer 1 is in another span"),
        ({"span": [{"at": "0:2", "name": "loop", "times": 0}]}, "times"),
        ({"span": [{"at": "0:2", "name": "byte_pool", "patch": 1}]}, "patch"),
        ({"span": [{"name": "loop"}]}, "'name' and 'at'"),
    ],
)
def test_a_wrong_layout_is_refused_with_the_layer_and_the_rule(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build(ModelConfig, {**BASE, **change})


def test_a_layer_that_cannot_be_built_is_named() -> None:
    config = build(ModelConfig, {**BASE, "key_value_heads": 1, "pattern": [{"at": "1", "token_mixer": "lightning"}]})
    with pytest.raises(UsageError, match="layer 1 cannot be built: lightning attention has keys of each head"):
        Transformer(config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"span": [{"at": "1:", "name": "hash_projection"}], "tied": True}, "begin at layer 0"),
        ({"span": [{"at": "0:", "name": "hash_projection"}]}, "give --model.tied true"),
        ({"channel_mixer": {"name": "tied", "mixer": "moe"}}, "moe says more than what it adds"),
        ({"token_mixer": "efficient_attention", "head_width": 4}, "as wide as the model, 16"),
        ({"token_mixer": "efficient_attention", "key_value_heads": 1}, "keys of each head"),
    ],
)
def test_a_part_that_does_not_fit_the_model_is_said(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Transformer(build(ModelConfig, {**BASE, **change}))


@pytest.mark.parametrize("name", ["tied weights", "one router for all layers", "hybrid"])
def test_a_layer_of_each_kind_stands_by_itself(name: str) -> None:
    """What is timed before a run: no layer looks for one before it."""
    changes = SHAPES.get(name, SHAPES["lightning"])
    for kind, _ in build(ModelConfig, {**BASE, **changes}).kinds():
        assert Transformer(kind.alone())(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 30)


def test_a_layer_that_follows_needs_one_that_leads() -> None:
    model = Transformer(build(ModelConfig, {**BASE, "channel_mixer": {"name": "tied", "leads": False}}))
    with pytest.raises(UsageError, match="none before it that reads the same tokens leads"):
        model(torch.zeros(1, 3, dtype=torch.int64))


def test_no_byte_is_told_of_the_patch_that_it_stands_in() -> None:
    """Every byte is changed in turn: what was predicted before it stays, and with it the first bytes of its own patch."""
    model = made("span byte_pool")
    text = torch.randint(30, (1, 12))
    with torch.no_grad():
        whole = model.read(Inputs(text)).hidden
        for place in range(12):
            other = text.clone()
            other[0, place] = (other[0, place] + 1) % 30
            changed = (model.read(Inputs(other)).hidden - whole).abs().amax(-1)[0] > 1e-12
            assert not changed[:place].any()
            assert changed[place]


def test_layers_that_are_kept_keep_their_kind() -> None:
    model = made("lightning")
    kinds = [type(block.token_mixer).__name__ for block in model.blocks]
    model.anatomy().keep_layers([2, 1])
    again = Transformer(model.config)
    assert [type(block.token_mixer).__name__ for block in again.blocks] == [kinds[2], kinds[1]]
    with pytest.raises(UsageError, match="spans cannot be dropped"):
        made("span loop").anatomy().keep_layers([0])


def test_what_some_layers_cannot_do_is_said() -> None:
    model = made("lightning")
    with pytest.raises(UsageError, match="layer 0 keeps a running state"):
        model.read(Inputs(torch.zeros(1, 3, dtype=torch.int64), mask=torch.ones(1, 3, 3, dtype=torch.bool)))


@pytest.mark.parametrize("mixer", [card.name for card in methods("model", "token mixer")])
def test_layers_get_other_mixers_and_the_model_is_built_again_from_what_it_says(mixer: str) -> None:
    model = Transformer(build(ModelConfig, {**BASE, "key_value_heads": 1})).eval()
    before = {name: p.clone() for name, p in model.named_parameters()}
    edit = Choice.of("surgery", "xatl", kind="edit", at="0, -1", token_mixer=mixer).build()
    made = edit.apply(model, edit.decide(model, Evidence(seed=4)))
    text = torch.randint(30, (1, 9))
    again = Transformer(model.config).eval()
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(text), made(text))
    kept = {name for name, p in made.named_parameters() if name in before and torch.equal(p, before[name])}
    assert {name for name in before if "token_mixer" not in name or name.startswith("blocks.1.")} <= kept
    silent = [made.blocks[layer].token_mixer.output.weight for layer in (0, 2)]
    assert not any(bool(weight.any()) for weight in silent)


def test_a_layer_with_other_positions_gets_tables_of_its_own() -> None:
    model = Transformer(build(ModelConfig, BASE)).eval()
    mixer = {"name": "grouped_differential", "rope_theta": 50.0}
    edit = Choice.of("surgery", "xatl", kind="edit", at="1", token_mixer=mixer).build()
    made = edit.apply(model, edit.decide(model, Evidence(seed=4)))
    assert isinstance(made, Transformer)
    with torch.no_grad():
        made.blocks[1].token_mixer.output.weight.normal_()  # type: ignore[union-attr, operator]
    again = Transformer(made.config).eval()
    again.load_state_dict(made.state_dict())
    text = torch.randint(30, (1, 9))
    assert torch.equal(again(text), made(text))
    made.anatomy().keep_layers([1])
    alone = Transformer(made.config).eval()
    alone.load_state_dict(made.state_dict())
    assert torch.equal(alone(text), made(text))
