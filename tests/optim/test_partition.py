import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shoestring.config import Choice
from shoestring.contract.role import lineage
from shoestring.errors import UsageError
from shoestring.optim.adamw import AdamW
from shoestring.optim.muon import Muon
from shoestring.optim.partition import members, partition, role_of


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.output = nn.Linear(4, 4)  # named as a head, but within a numbered block
        self.experts = nn.Parameter(torch.zeros(3, 4, 8))


class Model(nn.Module):
    def __init__(self, *, head: str = "lm_head", tied: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList([Block(), Block()])
        setattr(self, head, nn.Linear(4, 10, bias=False))
        if tied:
            getattr(self, head).weight = self.tokens.weight


class Hub(nn.Module):
    """Says what it has by the methods that transformers has, under names that say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 10)
        self.b = nn.Linear(10, 4)

    def get_input_embeddings(self) -> nn.Module:
        return self.a

    def get_output_embeddings(self) -> nn.Module:
        return self.b


def roles(model: nn.Module) -> dict[str, str]:
    return {member.name: member.role for member in members(model)}


@pytest.mark.parametrize("head", ["lm_head", "head", "output"])
def test_roles_of_a_language_model(head: str) -> None:
    found = roles(Model(head=head))
    assert found["tokens.weight"] == "embedding"
    assert found[f"{head}.weight"] == "head"
    assert found["blocks.1.experts"] == "matrix"
    assert found["blocks.1.output.weight"] == "matrix"
    assert found["blocks.1.output.bias"] == found["blocks.0.norm.weight"] == "vector"


def test_a_linear_of_another_name_is_the_head_where_an_embedding_has_as_many_rows() -> None:
    assert roles(Model(head="classify"))["classify.weight"] == "head"
    other = Model(head="classify")
    other.classify = nn.Linear(4, 11)
    assert roles(other)["classify.weight"] == "matrix"


def test_the_head_of_a_sequential_goes_where_heads_go(recwarn: pytest.WarningsRecorder) -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 10))
    assert partition(model, Muon, AdamW).describe().splitlines() == [
        "Muon: matrix, 1 tensor, 40 parameters",
        "    1.weight",
        "AdamW: embedding, 1 tensor, 40 parameters",
        "    0.weight",
        "AdamW: vector, 2 tensors, 20 parameters",
        "    1.bias",
        "    3.bias",
        "AdamW: head, 1 tensor, 100 parameters",
        "    3.weight",
    ]
    assert not recwarn.list


def test_a_block_that_repeats_has_no_head_though_its_width_is_the_vocabulary() -> None:
    model = nn.Sequential(nn.Embedding(4, 4), nn.ModuleList([Block(), Block()]))
    assert roles(model)["1.1.output.weight"] == "matrix"


def test_the_user_names_the_head_by_a_pattern() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    named = {member.name: member.role for member in members(model, head="2.*")}
    assert named == {"0.weight": "matrix", "0.bias": "vector", "2.weight": "head", "2.bias": "vector"}
    shares = partition(model, Muon, AdamW, head="2.*").shares
    assert [member.name for member in shares[1].members] == ["0.bias", "2.weight", "2.bias"]
    assert "head" not in {member.role for member in members(Model(), head="")}
    with pytest.raises(UsageError, match=r"^head = '2.wait' is the name of no parameter: did you mean '2.weight'\?$"):
        members(model, head="2.wait")


def test_a_layer_that_may_be_the_head_does_not_go_to_muon_without_a_word() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.warns(UserWarning, match=r"no output head was found: 2.weight, .* goes to Muon.* head='2.weight'"):
        partition(model, Muon, AdamW)


@pytest.mark.parametrize("silent", [{"head": ""}, {"head": "2.weight"}])
def test_the_warning_ends_once_the_user_has_said_so(silent: dict[str, str], recwarn: pytest.WarningsRecorder) -> None:
    partition(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), Muon, AdamW, **silent)
    partition(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), AdamW)
    partition(Hub(), Muon, AdamW)
    assert not recwarn.list


def test_the_last_linear_of_a_numbered_block_is_no_head() -> None:
    model = Model()
    del model.lm_head
    assert roles(model)["blocks.1.output.weight"] == "matrix"


def test_a_tied_head_is_the_embedding_once() -> None:
    model = Model(tied=True)
    assert roles(model)["tokens.weight"] == "embedding"
    assert "lm_head.weight" not in roles(model)
    assert role_of(model, model.lm_head.weight) == "embedding"  # type: ignore[arg-type, union-attr]


def test_the_model_says_itself_what_its_ends_are() -> None:
    assert roles(Hub()) == {"a.weight": "embedding", "a.bias": "vector", "b.weight": "head", "b.bias": "vector"}


def test_getters_that_have_nothing_to_give() -> None:
    class Bare(Hub):
        def get_input_embeddings(self) -> nn.Module:
            raise NotImplementedError

        def get_output_embeddings(self) -> Any:
            return None

    assert roles(Bare())["a.weight"] == roles(Bare())["b.weight"] == "matrix"


def test_the_first_that_accepts_takes_and_vectors_do_not_decay() -> None:
    model = Model()
    optimizer = partition(model, Choice.of("optim", "muon", lr=0.5), Choice.of("optim", "adamw")).build()
    first, second = optimizer.parts
    assert isinstance(first, Muon)
    assert isinstance(second, AdamW)
    assert [(group["role"], group["lr"]) for group in first.param_groups] == [("matrix", 0.5)]
    assert {group["role"]: group["weight_decay"] for group in second.param_groups} == {
        "embedding": 0.1,
        "vector": 0.0,
        "head": 0.1,
    }
    assert optimizer.param_groups[1]["param_names"] == ["tokens.weight"]
    only = partition(model, AdamW, Muon).build(decay_vectors=True)
    assert len(only.parts) == 1
    assert {group["weight_decay"] for group in only.param_groups} == {0.1}


def test_recipes_are_choices_classes_and_partials() -> None:
    optimizer = partition(Model(), functools.partial(Muon, lr=0.3), AdamW).build()
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 3e-3, 3e-3, 3e-3]


def test_what_cannot_be_shared_out_is_refused_in_one_line() -> None:
    with pytest.raises(
        UsageError, match=r"^tokens.weight is of the role 'embedding', which muon does not take: add adamw$"
    ):
        partition(Model(), Choice.of("optim", "muon"))
    with pytest.raises(UsageError, match="no optimiser was given"):
        partition(Model())
    with pytest.raises(UsageError, match=r"^torch.optim.AdamW does not say which .*: use shoestring.optim.AdamW, or"):
        partition(Model(), Muon, torch.optim.AdamW)
    with pytest.raises(UsageError, match=r"^torch.optim.Rprop does not say which parameters it takes: give a subclass"):
        partition(Model(), torch.optim.Rprop)
    with pytest.raises(UsageError, match=r"made already .* give its class, torch.optim.AdamW"):
        partition(Model(), Muon, torch.optim.AdamW(Model().parameters()))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no trainable parameter"):
        partition(Model().requires_grad_(False), AdamW)


def test_describe_says_who_got_what() -> None:
    lines = partition(Model(tied=True), Muon, AdamW).describe().splitlines()
    assert lines[:4] == [
        "Muon: matrix, 4 tensors, 224 parameters",
        "    blocks.*.experts (2)",
        "    blocks.*.output.weight (2)",
        "AdamW: embedding, 1 tensor, 40 parameters",
    ]
    assert partition(Model(), AdamW, Muon).describe().endswith("Muon: nothing")


def test_a_partition_is_frozen() -> None:
    with pytest.raises(AttributeError):
        partition(Model(), AdamW).shares = ()  # type: ignore[misc]


LAYERS = st.recursive(
    st.sampled_from(["linear", "embedding", "norm", "conv", "frozen", "shared"]),
    lambda inner: st.lists(inner, min_size=1, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(LAYERS, st.booleans())
def test_every_trainable_parameter_of_any_module_is_claimed_exactly_once(layers: object, muon_first: bool) -> None:
    shared = nn.Linear(3, 3)

    def make(layer: object) -> nn.Module:
        if isinstance(layer, list):
            return nn.Sequential(*map(make, layer))
        kinds = {
            "linear": lambda: nn.Linear(3, 2),
            "embedding": lambda: nn.Embedding(5, 3),
            "norm": lambda: nn.LayerNorm(3),
            "conv": lambda: nn.Conv2d(2, 3, 1),
            "frozen": lambda: nn.Linear(2, 2).requires_grad_(False),
            "shared": lambda: shared,
        }
        return kinds[str(layer)]()

    model = make(["linear", layers])
    optimizer = partition(model, *((Muon, AdamW) if muon_first else (AdamW, Muon)), head="").build()
    claimed = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(claimed) == sorted({id(parameter) for parameter in model.parameters() if parameter.requires_grad})


def test_a_role_of_a_modules_own_is_a_kind_of_another() -> None:
    from shoestring.optim import Muon, MuonHypersphere
    from shoestring.tune.low_rank_linear import LowRankLinear

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            base = nn.Linear(4, 4, bias=False).requires_grad_(False)
            self.inner = LowRankLinear(base, torch.ones(2, 4), torch.zeros(4, 2), 1.0)

    roles = {member.name: member.role for member in members(Adapted(), head="")}
    assert roles == {"embedding.weight": "embedding", "inner.down": "adapter", "inner.up": "adapter"}

    def taken_by(first: Any) -> list[str]:
        return [m.name for m in partition(Adapted(), first, AdamW, head="").shares[0].members]

    assert taken_by(Muon) == ["inner.down", "inner.up"]
    assert taken_by(MuonHypersphere) == []  # an adapter begins at zero: on a sphere it could not grow
    with pytest.raises(UsageError, match="no role that was declared"):
        lineage("adaptor")
