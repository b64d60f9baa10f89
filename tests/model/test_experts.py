"""Experts: balance over a batch, soft routing, and how far experts specialise."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from shoestring.config import Choice, build
from shoestring.contract.batch import Batch, Inputs
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.model.layout import Pattern
from shoestring.model.specialisation import expert_use, specialisation

WIDTH = 12
MOE = Choice.of("model", "moe", kind="channel mixer", experts=4)


def scattered(part: Any) -> Any:
    """The part in float64, away from its start."""
    torch.manual_seed(3)
    part.double()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return part


def test_balance_over_a_batch_is_that_of_the_choices_so_far() -> None:
    """By the formula, for micro-batches one after the other; another step begins anew, and evaluation changes nothing."""
    options = {"z": 0.0, "balance": 1.0, "active": 1}
    router = scattered(Choice.of("model", "token_choice", kind="router", scope="batch", **options).build(WIDTH, 3))
    parts = torch.randn(2, 3, 4, WIDTH, dtype=torch.float64)  # steps, micro-batches, tokens
    for step in parts:
        taken = torch.zeros(3, dtype=torch.float64)
        for number, x in enumerate(step):
            router.begin_part(number, None)
            shares = (x @ router.gate.weight.T).softmax(-1)
            taken += F.one_hot(shares.argmax(-1), 3).sum(0)
            wanted = 3 * (taken / taken.sum() * shares.mean(0)).sum()
            for _ in range(2):  # again, as where activations are computed again
                torch.testing.assert_close(router(x[None]).notes["loss.balance"], wanted)
            with torch.no_grad():
                router(parts[0])
    whole = scattered(Choice.of("model", "token_choice", kind="router", scope="workers", **options).build(WIDTH, 3))
    whole.gate = router.gate
    whole.begin_part(0, lambda counts: counts + torch.tensor([5, 0, 1]))
    shares = (parts[0, 0] @ router.gate.weight.T).softmax(-1)
    taken = F.one_hot(shares.argmax(-1), 3).sum(0) + torch.tensor([5, 0, 1])
    wanted = 3 * (taken / taken.sum() * shares.mean(0)).sum()
    torch.testing.assert_close(whole(parts[0, :1]).notes["loss.balance"], wanted)


def test_soft_routing_is_soft_moe_of_sequences_of_one_token() -> None:
    """Against the paper's formula of dispatch and combine, one slot an expert, token by token."""
    mixer = scattered(Choice.of("model", "moe", kind="channel mixer", experts=3, router="soft").build(WIDTH, 12))
    x = torch.randn(1, 5, WIDTH, dtype=torch.float64)
    each, rows = mixer.output.weight.shape[2], []
    assert each == 4
    for token in x[0]:
        sequence = token[None]
        scores = sequence @ mixer.router.gate.weight.T  # [tokens, slots]
        slots = scores.softmax(0).T @ sequence
        found = []
        for e, slot in enumerate(slots):
            hidden = mixer.input.weight[e] @ slot
            found.append(mixer.output.weight[e] @ (F.silu(hidden[:each]) * hidden[each:]))
        rows.append(scores.softmax(1) @ torch.stack(found))
    torch.testing.assert_close(mixer(x)[0][0], torch.cat(rows))


def test_one_router_leads_and_layers_follow_it() -> None:
    follows = {"name": "moe", "experts": 3, "router": {"name": "pre_gate", "leads": False}}
    leads = {"at": "1", "channel_mixer": {**follows, "router": {"name": "pre_gate", "z": 0.0, "balance": 1.0}}}
    config = {"layers": 3, "width": 8, "heads": 2, "vocabulary": 9, "context": 8, "channel_mixer": follows}
    first = {"at": "0", "channel_mixer": "swiglu"}
    model = Transformer(build(ModelConfig, {**config, "pattern": [first, leads]}))
    scattered(model)
    ids = torch.arange(8)[None]
    reading = model.read(Inputs(ids), tap=["blocks.0"])
    gate: torch.Tensor = model.get_parameter("blocks.1.channel_mixer.router.gate.weight")
    shares = (reading.tapped["blocks.0"][0] @ gate.T).softmax(-1)
    taken = F.one_hot(shares.argmax(-1), 3).sum(0)
    assert reading.notes["blocks.1.load"].tolist() == reading.notes["blocks.2.load"].tolist() == taken.tolist()
    torch.testing.assert_close(reading.auxiliary(), 3 * (taken / 8 * shares.mean(0)).sum())
    reading.hidden.square().sum().backward()
    assert gate.grad is not None
    assert gate.grad.any()
    with pytest.raises(UsageError, match="none before it has leads = true"):
        Transformer(build(ModelConfig, {**config, "pattern": [first]})).read(Inputs(ids))
    span = [{"at": "1:3", "name": "mixture_of_depths"}]
    with pytest.raises(UsageError, match="take it out of this span"):
        Transformer(build(ModelConfig, {**config, "pattern": [first, leads], "span": span})).read(Inputs(ids))


def test_shared_experts_begin_silent() -> None:
    mixer = {"name": "moe", "experts": 3, "shared": 1}
    config = {"layers": 1, "width": 8, "heads": 2, "vocabulary": 9, "channel_mixer": mixer}
    part: Any = Transformer(build(ModelConfig, config)).blocks[0]
    assert not part.channel_mixer.shared.output.weight.any()
    assert not part.channel_mixer.output.weight.any()
    assert part.channel_mixer.shared.gate_up.weight.all()


def test_specialisation_is_entropy_and_information() -> None:
    apart = specialisation(torch.tensor([[8, 0], [0, 2]]))
    assert apart.information == pytest.approx(math.log(2))
    assert apart.entropy.tolist() == [0, 0]
    alike = specialisation(torch.tensor([[3, 1], [6, 2]]))
    assert alike.information == pytest.approx(0)
    assert alike.entropy.tolist() == pytest.approx([math.log(4) - 0.75 * math.log(3)] * 2)
    torch.manual_seed(0)
    model = Transformer(
        ModelConfig(layers=2, width=8, heads=2, vocabulary=9, context=8, pattern=(Pattern("1", channel_mixer=MOE),))
    )
    texts = {
        name: [Batch(Inputs(ids), ids)] for name, ids in (("a", torch.ones(2, 8).long()), ("b", torch.arange(8)[None]))
    }
    found, spent = expert_use(model, texts)
    assert list(found) == ["blocks.1"]
    torch.testing.assert_close(found["blocks.1"].use.sum(1), torch.ones(2, dtype=torch.float64))
    assert spent.read == 24
