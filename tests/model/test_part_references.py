"""Each mixer against a slow reference written from its paper, one token at a time, in float64."""

from typing import Any

import pytest
import torch

from shoestring.config import Choice
from shoestring.method import methods
from shoestring.model.block import Place
from shoestring.model.delta_rule import delta_rule
from shoestring.model.linear_recurrence import linear_recurrence
from shoestring.model.rotary import Rotary
from tests.model.mixer_references import (
    CHANNEL_MIXERS,
    ELSEWHERE,
    HEAD,
    HEADS,
    LENGTH,
    SHARED_KEYS,
    TOKEN_MIXERS,
    WIDTH,
    scattered,
)


@pytest.mark.parametrize("card", methods("model", "token mixer"), ids=lambda card: card.name)
def test_token_mixers(card: Any) -> None:
    if card.name in ELSEWHERE:
        return
    reference, options = TOKEN_MIXERS[card.name]
    torch.manual_seed(3)
    groups = 1 if card.name in SHARED_KEYS else HEADS
    each = WIDTH // HEADS if card.name == "efficient_attention" else HEAD
    mixer = Choice.of("model", card.name, kind="token mixer", **options).build(WIDTH, HEADS, groups, each)
    if hasattr(mixer, "placed"):
        mixer.double().placed(Place(1, 4, 32))
    mixer = scattered(mixer)
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    found = mixer(x, *Rotary(HEAD, 32, 10000.0).double()(0, LENGTH))
    found = found[0] if isinstance(found, tuple) else found
    for row in range(2):
        torch.testing.assert_close(found[row], reference(mixer, x[row]))


@pytest.mark.parametrize("card", methods("model", "channel mixer"), ids=lambda card: card.name)
def test_channel_mixers(card: Any) -> None:
    if card.name in ELSEWHERE:
        return
    reference, options = CHANNEL_MIXERS[card.name]
    torch.manual_seed(4)
    mixer = scattered(Choice.of("model", card.name, kind="channel mixer", **options).build(WIDTH, 28))
    x = torch.randn(LENGTH, WIDTH, dtype=torch.float64)
    found = mixer(x[None])
    found = found[0][0] if isinstance(found, tuple) else found[0]
    torch.testing.assert_close(found, reference(mixer, x))


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("length", [1, 3, 8, 21])
def test_recurrences_in_chunks_are_the_plain_ones(length: int, begun: bool, documents: bool) -> None:
    torch.manual_seed(length)
    q, k = torch.randn(2, 2, length, 3, 4, dtype=torch.float64)
    k = k / k.norm(dim=-1, keepdim=True)
    v = torch.randn(2, length, 3, 5, dtype=torch.float64)
    decay, strength = -torch.rand(2, length, 3, dtype=torch.float64), torch.rand(2, length, 3, dtype=torch.float64)
    parts = torch.randint(0, 2, (2, length)).cumsum(1) if documents else None
    state = torch.randn(2, 3, 4, 5, dtype=torch.float64) if begun else None
    for delta in (False, True):
        held = torch.zeros(2, 3, 4, 5, dtype=torch.float64) if state is None else state.clone()
        wanted = []
        for t in range(length):
            if parts is not None and t:
                held = held * (parts[:, t] == parts[:, t - 1])[:, None, None, None]
            held = held * decay[:, t].exp()[..., None, None]
            value = v[:, t]
            if delta:
                value = strength[:, t, :, None] * (value - torch.einsum("bhk,bhkv->bhv", k[:, t], held))
            held = held + k[:, t, :, :, None] * value[:, :, None]
            wanted.append(torch.einsum("bhk,bhkv->bhv", q[:, t], held))
        if delta:
            found, last = delta_rule(q, k, v, strength, decay, state=state, documents=parts, keep=True, chunk=4)
        else:
            found, last = linear_recurrence(q, k, v, decay, state=state, documents=parts, keep=True, chunk=4)
        torch.testing.assert_close(found, torch.stack(wanted, 1))
        torch.testing.assert_close(last, held)
