"""The check of coordinates of Yang et al. (2022): over widths, steps of a transferred recipe move the logits alike."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from shoestring.model import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.optim.adamw import AdamW
from shoestring.optim.muon_hypersphere import MuonHypersphere
from shoestring.optim.partition import members, partition
from shoestring.schedule.transfer.hyperp import HyperP
from shoestring.schedule.transfer.mup import MuP
from shoestring.schedule.transfer.rule import Scale, Transfer, scale_groups, scale_weights
from shoestring.schedule.transfer.standard import Standard

NARROW, WIDE = 64, 256
RECIPES = {
    "adamw": (partial(AdamW, lr=1e-2, weight_decay=0.0),),
    "muon_hypersphere": (partial(MuonHypersphere, lr=0.05, precision="float32"), partial(AdamW, lr=1e-2)),
}


def moved(transfer: Transfer, recipe: str, width: int, tied: bool) -> tuple[float, float]:
    """Root mean squares, after 6 steps on random text, of the change of the logits, and of what the blocks add."""
    rules = transfer(Scale(width=width, depth=2))
    torch.manual_seed(0)
    scales = {"input_scale": rules.input, "output_scale": rules.output}
    model = Transformer(
        ModelConfig(
            layers=2,
            width=width,
            heads=width // 16,
            vocabulary=64,
            context=16,
            tied=tied,
            **scales,  # type: ignore[arg-type]
        )
    )
    optimizer = partition(model, *RECIPES[recipe]).build()
    scale_weights(rules, ((member.role, member.parameter) for member in members(model)))
    scale_groups(rules, optimizer.param_groups)
    ids = torch.randint(64, (8, 17), generator=torch.Generator().manual_seed(1))
    inputs, last = ids[:, :-1], list[torch.Tensor]()
    start = model(inputs).detach()
    for _ in range(6):
        F.cross_entropy(model(inputs).flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.norm.register_forward_pre_hook(lambda _, given: last.append(given[0]))
    with torch.no_grad():
        logits = model(inputs) - start
        added = last[0] - rules.input * model.embedding(inputs)
    return logits.square().mean().sqrt().item(), added.square().mean().sqrt().item()


@pytest.mark.parametrize("tied", [True, False])
def test_steps_under_mup_move_logits_and_features_alike_at_every_width(tied: bool) -> None:
    wide, narrow = (moved(MuP(base_width=64), "adamw", size, tied) for size in (WIDE, NARROW))
    assert 0.7 < wide[0] / narrow[0] < 1.3
    assert 0.7 < wide[1] / narrow[1] < 1.3


@pytest.mark.parametrize("tied", [True, False])
def test_without_a_rule_they_move_further_the_wider_the_model(tied: bool) -> None:
    wide, narrow = (moved(Standard(), "adamw", size, tied) for size in (WIDE, NARROW))
    assert wide[0] > 1.5 * narrow[0]
    assert wide[1] > 4 * narrow[1]


def test_steps_under_hyperp_move_logits_alike_at_every_width() -> None:
    # of the features no more is asked than that they stay near: with fewer tokens than widths a step has few directions
    wide, narrow = (moved(HyperP(base_width=64, base_depth=2), "muon_hypersphere", s, True) for s in (WIDE, NARROW))
    assert 0.7 < wide[0] / narrow[0] < 1.3
    assert wide[1] < 2 * narrow[1]
