"""Every way to make a model smaller or larger, on shapes of three families: what stays is legal, nothing changes where nothing
goes, and the result is saved, opened again and exported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shoestring.config import Choice, build
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.edit import Decision, Edit, Evidence
from shoestring.errors import UsageError
from shoestring.method import methods
from shoestring.model import ModelConfig, Transformer
from shoestring.model.anatomy import NativeAnatomy
from shoestring.model.hf import from_transformers, to_transformers
from shoestring.surgery.masking import Masking
from shoestring.surgery.pruning import Pruning, kept_count
from shoestring.surgery.scored_pruning import ScoredPruning
from shoestring.train.edits import Applied, fold_edits, read_decisions, write_decisions

SIZES = {"layers": 3, "width": 32, "heads": 4, "key_value_heads": 2, "hidden": 40, "vocabulary": 50, "context": 24}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"token_mixer": {"name": "attention", "qk_norm": False}, "tied": False},
    "qwen3": {"head_width": 6},
    "gpt_neox": {
        "key_value_heads": 4,
        "token_mixer": {"name": "attention", "qk_norm": False, "bias": "all", "rotary_share": 0.5},
        "channel_mixer": {"name": "gelu", "bias": True},
        "norm": "layernorm",
        "residual": "parallel",
        "tied": False,
    },
}
CUT: dict[str, dict[str, Any]] = {
    "minitron": {"hidden": 0.6, "heads": 0.5, "width": 0.5, "multiple": 4},
    "minitron_ssm": {"hidden": 0.6, "heads": 0.5, "width": 0.5, "multiple": 4},
    "slimgpt": {"hidden": 0.6, "heads": 0.5, "multiple": 4},
    "random_pruning": {"hidden": 0.6, "heads": 0.5, "width": 0.5, "multiple": 4},
    "mini_llm": {"hidden": 0.6, "heads": 0.5, "directions": 2, "multiple": 4},
    "sheared_llama": {"hidden": 0.6, "heads": 0.5, "steps": 4, "multiple": 4},
    "mini_gpts": {"hidden": 0.6, "multiple": 4},
    "nested": {"hidden": 0.5, "depth": 0.7},
    "drop_layers": {"count": 1},
    "flexigpt": {"count": 1, "rank": 2},
    "inheritune": {"layers": 2},
    "compactifai": {"share": 0.5},
    "low_rank_clone": {"width": 0.5, "multiple": 4},
}
SAME: dict[str, dict[str, Any]] = {
    "nested": {},
    "inheritune": {"layers": 3},
    "compactifai": {"share": 1.0},
    "low_rank_clone": {"width": 1.0},
    "flexigpt": {"layers": (1,), "rank": 64},
    "grow_depth": {"count": 2},
    "grow_hidden": {"factor": 1.6, "multiple": 4},
    "sparse_upcycling": {"experts": 3},
    "read_me": {"experts": 2, "share": 1.0},
    "cats": {"sparsity": 0.0},
    "sparse_schedule": {},
    "cast": {},
    "progressive_gradient_flow": {},
}
"""Options with which the model computes what it did; methods of the kind `Pruning` are given all indices instead."""
NOT_FOR = {(name, "gpt_neox") for name in ("low_rank_clone", "cats", "sparse_upcycling", "read_me")}
OF_EXPERTS = {"expert_pruning", "orthogonal_growth", "duo_llm"}
"""Edits of models with experts, or that make choices of layers: test_expert_edits.py and test_routing_oracle.py have them."""


def made(family: str) -> Transformer:
    torch.manual_seed(1)
    model = Transformer(build(ModelConfig, {**SIZES, **FAMILIES[family]}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model


def evidence() -> Evidence:
    torch.manual_seed(2)
    ids = torch.randint(50, (4, 20))
    return Evidence(seed=3, text=(Batch(Inputs(ids[:2]), ids[:2]), Batch(Inputs(ids[2:]), ids[2:])))


def edit(name: str, options: dict[str, Any]) -> Edit:
    one: Edit = Choice.of("surgery", name, kind="edit", **options).build()
    return one


def logits(of: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = of(torch.arange(12).view(1, 12) % 30)
    return found


def test_every_edit_of_surgery_is_here() -> None:
    known = {card.name for card in methods("surgery", "edit")}
    others = {"mini_moe", "mini_sequences", "multi_token_heads", "weight_norm", "xatl"}  # neither smaller nor larger
    others |= {"activation_beacon", "dms", "dual_chunk", "longgen"}  # how layers attend
    others |= {
        "lolcats",
        "supra",
        "scale_vectors",
        "normalize_and_project",
        "ladder",
        "convert_attention",
        "qk_clip",
        "detector",
        "hidden_tokens",
        "scone",
    }  # what layers are
    others |= {"slim_moe", *OF_EXPERTS}  # of models with experts: test_experts.py, test_expert_edits.py
    assert known - others == set(CUT) | set(SAME)
    pruning = {
        c.name for c in methods("surgery", "edit") if isinstance(c.target, type) and issubclass(c.target, Pruning)
    }
    assert pruning - others <= set(CUT)


CASES = [(name, family) for name in CUT for family in FAMILIES if (name, family) not in NOT_FOR]


@pytest.mark.parametrize(("name", "family"), CASES)
def test_it_is_smaller_legal_saved_and_exported(tmp_path: Path, name: str, family: str) -> None:
    model, options = made(family), dict(CUT[name])
    if family == "gpt_neox" and "width" not in options:
        options.pop("heads", None)  # its heads are width / heads wide
    one = edit(name, options)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    decision = one.decide(model, evidence())
    for n, p in model.named_parameters():
        assert torch.equal(before[n], p), "deciding leaves the model as it is"
    if "text" in one.needs:
        assert decision.spent.flops > 0
        with pytest.raises(UsageError, match="text"):
            edit(name, options).decide(made(family), Evidence())
    small = one.apply(model, decision)
    assert all(tensor.is_contiguous() for tensor in small.state_dict().values()), "a checkpoint can hold it"
    write_decisions(tmp_path, [Applied(name, one, decision)])
    choice = Choice.of("surgery", name, kind="edit", **options)
    read = read_decisions(tmp_path, [choice])
    assert read is not None
    again = one.apply(made(family), read[0])
    assert torch.equal(logits(small), logits(again))
    plain = fold_edits(again, [Applied(name, one, read[0])])
    torch.testing.assert_close(logits(plain), logits(small), atol=1e-4, rtol=1e-4)
    assert isinstance(plain, Transformer)
    trained = sum(p.numel() for p in small.parameters() if p.requires_grad)
    assert trained < sum(p.numel() for p in before.values())
    config = plain.config
    assert config.heads % config.key_value_heads == 0
    assert config.width == plain.norm.weight.shape[0] == plain.embedding.weight.shape[1]
    if not NativeAnatomy(plain).uniform():
        with pytest.raises(UsageError, match="layers"):
            to_transformers(plain)
        return
    theirs = to_transformers(plain)
    assert theirs.config.model_type == family
    ids = torch.arange(12).view(1, 12) % 30
    torch.testing.assert_close(theirs(ids).logits, logits(small), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(from_transformers(theirs)), logits(small), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [name for name in CUT if name not in SAME and name != "drop_layers"])
def test_leaving_all_indices_changes_nothing(name: str, family: str) -> None:
    model, one = made(family), edit(name, CUT[name])
    whole = logits(model)
    kept = [
        {"kind": kind, "layer": axis.layer, "indices": list(range(axis.size))}
        for kind in ("key_value_head", "hidden", "width")
        for axis in model.anatomy().axes(kind)
    ]
    assert torch.equal(logits(one.apply(model, Decision({"keep": kept}))), whole)


@pytest.mark.parametrize(("name", "family"), [(n, f) for n in SAME for f in FAMILIES if (n, f) not in NOT_FOR])
def test_where_nothing_is_to_go_the_logits_stay(name: str, family: str) -> None:
    model, one = made(family), edit(name, SAME[name])
    whole = logits(model)
    changed = one.apply(model, one.decide(model, evidence()))
    assert all(tensor.is_contiguous() for tensor in changed.state_dict().values()), "a checkpoint can hold it"
    torch.testing.assert_close(logits(changed), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "family"), sorted(NOT_FOR))
def test_what_does_not_fit_a_family_is_said(name: str, family: str) -> None:
    with pytest.raises(UsageError, match=r"RMS norms|gated layers"):
        edit(name, {}).decide(made(family), evidence())


SCORED = {
    c.name for c in methods("surgery", "edit") if isinstance(c.target, type) and issubclass(c.target, ScoredPruning)
}


@pytest.mark.parametrize("name", sorted(SCORED))
def test_as_many_stay_as_was_said_and_they_score_most(name: str) -> None:
    model, one = made("qwen3"), edit(name, CUT[name])
    assert isinstance(one, ScoredPruning)
    decision = one.decide(model, evidence())
    scores, _ = one.scores(model, evidence(), [kind for kind, share in one._asked() if share < 1])
    again = one.decide(model, evidence())
    assert json.dumps(dict(decision.values)) == json.dumps(dict(again.values))
    for row in decision.values["keep"]:
        if row["kind"] == "hidden":
            score = scores["hidden", row["layer"]]
            assert len(row["indices"]) == kept_count(40, 0.6, 4)
            gone = sorted(set(range(40)) - set(row["indices"]))
            assert score[row["indices"]].min() >= score[gone].max()


MASKS = {c.name for c in methods("surgery", "edit") if isinstance(c.target, type) and issubclass(c.target, Masking)}


def test_masks_are_in_the_table_of_masks() -> None:
    from tests.surgery.test_masks import PATTERNS

    assert set(PATTERNS) == MASKS
