"""Models of attention and state-space layers are cut along the axes of both, and heads group by group."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from shoestring.config import build
from shoestring.contract.batch import Inputs
from shoestring.contract.cost import Shape
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.shrink.shares import share_for
from shoestring.shrink.target import Target, size_of
from shoestring.surgery.edits.drop_layers import DropLayers
from shoestring.surgery.edits.minitron_ssm import MinitronSSM
from shoestring.surgery.pruning import axis_of, cut
from shoestring.surgery.resize import Cut, resize
from tests.surgery.test_every_pruning import SIZES, evidence, logits

MAMBA = {"name": "mamba2", "state": 8, "groups": 2, "chunk": 4}


def hybrid() -> Transformer:
    """Layers 0 and 2 are state-space layers of 8 heads of 8 channels, in 2 groups; layer 1 is attention."""
    torch.manual_seed(1)
    model = Transformer(build(ModelConfig, {**SIZES, "pattern": [{"at": "::2", "token_mixer": MAMBA}]}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("output.weight"):
                parameter.normal_(std=0.2)
    return model


def mixer(model: Transformer, layer: int) -> Any:
    return model.blocks[layer].token_mixer


@pytest.mark.parametrize(
    ("kind", "order"),
    [("ssm_channel", range(7, -1, -1)), ("ssm_state", range(7, -1, -1)), ("head", (3, 1, 0, 2, 6, 7, 5, 4))],
)
def test_another_order_changes_nothing(kind: str, order: Any) -> None:
    model, whole = hybrid(), hybrid()
    cut(model, kind, 2, list(order))
    assert not torch.equal(mixer(model, 2).input.weight, mixer(whole, 2).input.weight)
    torch.testing.assert_close(logits(model), logits(whole), atol=1e-5, rtol=1e-5)


def test_heads_stay_in_their_groups() -> None:
    axis = axis_of(hybrid().anatomy(), "head", 0)
    assert axis.runs == 2
    for keep in ([0, 1, 2, 4], [4, 5, 0, 1], [0]):
        with pytest.raises(UsageError, match="each of its 2 groups keeps as many of its 4"):
            resize(hybrid(), Cut(axis, keep))


def test_states_that_nothing_writes_can_go() -> None:
    model = hybrid()
    with torch.no_grad():
        for group in range(2):  # states 2 to 7 of B: their rows come after gate and x
            mixer(model, 0).input.weight[128 + 8 * group + 2 : 128 + 8 * group + 8] = 0
            mixer(model, 0).taps_bias[64 + 8 * group + 2 : 64 + 8 * group + 8] = 0
    whole = logits(model)
    cut(model, "ssm_state", 0, [0, 1])
    assert mixer(model, 0).state == 2
    torch.testing.assert_close(logits(model), whole, atol=1e-5, rtol=1e-5)


def test_scores_are_those_of_the_formula_and_the_result_is_legal() -> None:
    model = hybrid()
    one = MinitronSSM(width=0.5, hidden=0.6, heads=0.5, ssm_heads=0.5, ssm_channels=0.5, ssm_state=0.5, multiple=4)
    scores, _ = one.scores(model, evidence(), ["head", "ssm_channel", "ssm_state"])
    read: list[Tensor] = []
    mixer(model, 2).input.register_forward_pre_hook(lambda _, given: read.append(given[0].detach()))
    for batch in evidence().text:
        logits_of = model(batch.inputs.values)
    assert logits_of.isfinite().all()
    u, weight = torch.cat(read), mixer(model, 2).input.weight.detach()

    def size(row: int) -> float:
        return float(sum((u[b] @ weight[row]).abs().mean() ** 2 for b in range(len(u))) ** 0.5)

    s = torch.tensor([[size(64 + 8 * h + c) for c in range(8)] for h in range(8)])
    b, c = (torch.tensor([[size(start + 8 * g + n) for n in range(8)] for g in range(2)]) for start in (128, 144))
    channels = torch.tensor([sum(float(s[h, k]) ** 2 for h in range(8)) ** 0.5 for k in range(8)])
    stay = channels.argsort(descending=True)[:4]
    heads = torch.tensor([sum(float(s[h, k]) ** 2 for k in stay) ** 0.5 for h in range(8)])
    torch.testing.assert_close(scores["ssm_channel", 2], channels)
    torch.testing.assert_close(scores["head", 2], heads)
    torch.testing.assert_close(scores["ssm_state", 2], b.square().sum(0).sqrt() * c.square().sum(0).sqrt())

    decision = one.decide(model, evidence())
    (kept,) = [row["indices"] for row in decision.values["keep"] if (row["kind"], row["layer"]) == ("head", 2)]
    assert kept == sorted([*heads[:4].argsort()[2:].tolist(), *(4 + heads[4:].argsort()[2:]).tolist()])
    small: Any = one.apply(hybrid(), decision)
    own = mixer(small, 2)
    assert (own.heads, own.head, own.state, own.groups, own.inner) == (4, 4, 4, 2, 16)
    before = logits(small)
    again = Transformer(small.config)  # the configuration says what the weights are
    again.load_state_dict(small.state_dict())
    torch.testing.assert_close(logits(again), before)
    assert small.cost(Shape(1, 5)).flops < 0.6 * hybrid().cost(Shape(1, 5)).flops
    ids, cache = torch.arange(12).view(1, 12) % 30, small.new_cache(1, 12)
    with torch.no_grad():
        parts = [small.read(Inputs(part), cache).logits() for part in ids.split((5, 1, 6), 1)]
    torch.testing.assert_close(torch.cat(parts, 1), before, atol=1e-4, rtol=1e-4)
    dropped = DropLayers(layers=(1,)).apply(small, DropLayers(layers=(1,)).decide(small, evidence()))
    assert dropped.about.layers == 2
    assert logits(dropped).isfinite().all()


def test_a_hybrid_comes_down_to_a_target_like_a_dense_model() -> None:
    model = hybrid()
    axes, target = ("hidden", "ssm_heads", "ssm_channels"), Target.parse("0.8x")
    share, planned = share_for(model, target, axes, 4, whole=size_of(model), measure=size_of)
    one = MinitronSSM(multiple=4, **dict.fromkeys(axes, share))
    small = one.apply(copy.deepcopy(model), one.decide(model, evidence()))
    assert size_of(small).parameters == planned.parameters <= 0.8 * size_of(model).parameters


def test_a_model_without_such_layers_is_told() -> None:
    from tests.surgery.test_every_pruning import made

    with pytest.raises(UsageError, match="no axis 'ssm_channel'"):
        MinitronSSM(ssm_channels=0.5).decide(made("llama"), evidence())
    with pytest.raises(UsageError, match="no state-space layer"):
        MinitronSSM(ssm_heads=0.5).decide(made("llama"), evidence())
