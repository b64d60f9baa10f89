"""One table for every registered optimiser: it trains, it resumes exactly, its state has its stated size, and so on."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from shoestring.config import Choice
from shoestring.errors import ShoestringError, UsageError
from shoestring.method import Card, methods
from shoestring.optim.composite import Composite, scale_learning_rates
from shoestring.optim.curvature import LogitsCurvature
from shoestring.optim.partition import members, partition
from shoestring.optim.state import flatten_state, restore_state

EVERY = pytest.mark.parametrize("card", methods("optim"), ids=lambda card: card.name)


class Tiny(nn.Module):
    """An embedding, a block with a norm and a bias, and a head: every role there is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(12, 8)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 24)
        self.down = nn.Linear(24, 8, bias=False)
        self.experts = nn.Parameter(torch.randn(2, 8, 8) * 0.1)
        self.lm_head = nn.Linear(8, 12, bias=False)

    def logits(self) -> torch.Tensor:
        x = self.tokens(torch.arange(12))
        x = x + self.down(self.up(self.norm(x)).relu())
        return self.lm_head(x + (x @ self.experts).sum(0))

    def loss(self) -> torch.Tensor:
        """Of predicting the next number modulo 12."""
        return nn.functional.cross_entropy(self.logits().float(), (torch.arange(12) + 1) % 12)


def show_curvature(optimizer: Any, model: Tiny, seed: int = 0) -> None:
    """Give second derivatives to an optimiser that asks for them, as the trainer does."""
    if hasattr(optimizer, "wants_curvature") and optimizer.wants_curvature():
        optimizer.observe(LogitsCurvature(model.logits, (torch.arange(12) + 1) % 12, seed=seed))


def optimizer_for(model: nn.Module, card: Card) -> Composite:
    """This optimiser for what it accepts, AdamW for the rest."""
    return partition(model, Choice.of("optim", card.name), Choice.of("optim", "adamw")).build()


def steps(model: Tiny, optimizer: Composite, count: int, factor: float = 1.0) -> list[float]:
    losses = []
    for step in range(count):
        scale_learning_rates(optimizer, factor * (1 - step / (2 * count)))
        optimizer.zero_grad()
        loss = model.loss()
        loss.backward()
        show_curvature(optimizer, model, step)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_table_holds_the_optimizers() -> None:
    assert {"adamw", "muon"} <= {card.name for card in methods("optim")}


@EVERY
def test_trains(card: Card) -> None:
    model = Tiny()
    losses = steps(model, optimizer_for(model, card), 60)
    assert losses[-1] < 0.6 * losses[0]


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumes_bit_exact(card: Card, dtype: torch.dtype, tmp_path: Path) -> None:
    model = Tiny().to(dtype)
    optimizer = optimizer_for(model, card)
    steps(model, optimizer, 3, factor=0.7)
    tensors, record = flatten_state(optimizer)
    save_file(tensors, tmp_path / "state.safetensors")
    (tmp_path / "state.json").write_text(json.dumps(record, allow_nan=False))

    resumed = copy.deepcopy(model)
    fresh = optimizer_for(resumed, card)
    restore_state(fresh, load_file(tmp_path / "state.safetensors"), json.loads((tmp_path / "state.json").read_text()))
    again, _ = flatten_state(fresh)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensor) and again[key].dtype == tensor.dtype for key, tensor in tensors.items())
    assert [group["lr"] for group in fresh.param_groups] == [group["lr"] for group in optimizer.param_groups]

    assert steps(resumed, fresh, 3) == steps(model, optimizer, 3)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), model.parameters(), strict=True))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_takes_the_bytes_it_states(card: Card, dtype: torch.dtype) -> None:
    model = Tiny().to(dtype)
    target: Any = card.target
    own = [member.parameter for member in members(model) if member.role in target.accepts]
    optimizer = card.target(own)
    model.loss().backward()
    show_curvature(optimizer, model)
    optimizer.step()
    tensors, _ = flatten_state(optimizer)
    taken = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert target.state_bytes(own) == taken


DECAYING = [card for card in methods("optim") if "weight_decay" in card.options().model_fields]


@pytest.mark.parametrize("card", DECAYING, ids=lambda card: card.name)
def test_the_decay_of_a_bfloat16_weight_is_rounded_once_with_its_step(card: Card) -> None:
    """Rounded by itself, a decay below half a unit in the last place is lost at every step, and one above it doubled."""
    generator = torch.Generator().manual_seed(0)
    start, gradient = (torch.randn(32, 32, generator=generator).bfloat16() for _ in range(2))
    moved = {}
    for dtype in (torch.bfloat16, torch.float32):
        weight = nn.Parameter(start.to(dtype, copy=True))
        optimizer = card.target([weight], lr=0.1, weight_decay=1.0)
        weight.grad = gradient.to(dtype)
        if hasattr(optimizer, "update_hessian"):
            optimizer.update_hessian([torch.ones(32, 32)])
        for _ in range(3):  # the first step of some builds their state alone
            optimizer.step()
            if not torch.equal(weight.detach(), start.to(dtype)):
                break
        moved[dtype] = weight.detach()
    assert not torch.equal(moved[torch.bfloat16], start)
    assert torch.equal(moved[torch.bfloat16], moved[torch.float32].bfloat16())


@EVERY
def test_a_state_of_another_shape_is_refused(card: Card) -> None:
    model = Tiny()
    optimizer = optimizer_for(model, card)
    steps(model, optimizer, 1)
    tensors, record = flatten_state(optimizer)
    wider = Tiny()
    wider.up = nn.Linear(8, 32)
    wider.down = nn.Linear(32, 8, bias=False)
    fresh = optimizer_for(wider, card)
    with pytest.raises(ShoestringError, match=r"(up|down)\.weight was \[\d+, \d+\] and is now \[\d+, \d+\]$"):
        restore_state(fresh, tensors, record)
    assert not fresh.state


def _options() -> list[tuple[Card, str]]:
    return [(card, option) for card in methods("optim") for option in card.options().model_fields]


@pytest.mark.parametrize(("card", "option"), _options(), ids=lambda each: getattr(each, "name", each))
def test_a_bad_argument_gets_one_clear_line(card: Card, option: str) -> None:
    with pytest.raises(ValueError) as direct:
        card.target([nn.Parameter(torch.ones(2, 2))], **{option: "nonsense"})
    with pytest.raises(UsageError) as configured:
        Choice.of("optim", card.name, **{option: "nonsense"})
    for message in (str(direct.value), str(configured.value)):
        assert option in message
        assert "nonsense" in message
        assert "\n" not in message


@EVERY
def test_a_negative_or_unknown_option_is_refused(card: Card) -> None:
    parameters = [nn.Parameter(torch.ones(2, 2))]
    with pytest.raises(ValueError, match=r"lr = -0\.1"):
        card.target(parameters, lr=-0.1)
    with pytest.raises(UsageError, match=r"lr = -0\.1"):
        Choice.of("optim", card.name, lr=-0.1)
    with pytest.raises(UsageError, match=r"unknown key .*did you mean 'weight_decay'"):
        Choice.of("optim", card.name, weight_decai=0.1)
    with pytest.raises(ValueError, match="empty parameter list"):
        card.target([])


@EVERY
def test_its_card_is_filled_in(card: Card) -> None:
    assert card.paper
    assert card.claim
    assert card.cost
    assert card.summary.endswith(".")
    target: Any = card.target
    assert target.accepts <= {"embedding", "head", "matrix", "vector"}
