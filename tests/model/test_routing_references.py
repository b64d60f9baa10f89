"""Routers and spans that choose tokens, each against a slow reference written from its paper."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.config import Choice
from shoestring.model.routers.sinkhorn import Sinkhorn
from shoestring.model.routing import Routing
from shoestring.model.span import Where
from tests.model.mixer_references import scattered

WIDTH = 12
NOWHERE = Where(((torch.ones(16, 1, 2), torch.zeros(16, 1, 2)),), None, None)


def dense(routing: Routing, tokens: int, experts: int) -> Tensor:
    """What a routing says, as a matrix [N, E]."""
    found = torch.zeros(tokens, experts, dtype=routing.weights.dtype)
    numbers = torch.repeat_interleave(torch.arange(experts), routing.counts)
    found[routing.tokens, numbers] = routing.weights
    return found


def test_token_choice_and_its_terms_of_the_loss() -> None:
    router = scattered(Choice.of("model", "token_choice", kind="router", normalised=False).build(WIDTH, 5))
    x = torch.randn(2, 7, WIDTH, dtype=torch.float64)
    logits = x.view(14, WIDTH) @ router.gate.weight.T
    shares = logits.softmax(-1)
    routing = router(x)
    wanted, taken = torch.zeros(14, 5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for n in range(14):
        for e in sorted(range(5), key=lambda e: -float(shares[n, e].detach()))[:2]:
            wanted[n, e], taken[e] = shares[n, e], taken[e] + 1
    torch.testing.assert_close(dense(routing, 14, 5), wanted)
    assert routing.notes["load"].tolist() == taken.tolist()
    torch.testing.assert_close(routing.notes["loss.balance"], 0.01 * 5 * (taken / 28 * shares.mean(0)).sum())
    torch.testing.assert_close(routing.notes["loss.z"], 0.001 * logits.exp().sum(-1).log().square().mean())


def test_sinkhorn_shares_tokens_out_and_chooses_by_scores_when_it_does_not_train() -> None:
    torch.manual_seed(0)
    router: Sinkhorn = Choice.of("model", "sinkhorn", kind="router", iterations=200).build(WIDTH, 4)
    scattered(router)
    x = torch.randn(1, 40, WIDTH, dtype=torch.float64) + 1.0  # alike enough for one expert to be everybody's best
    logits = router.gate(x)[0]
    plan = router.balanced(logits).exp()
    torch.testing.assert_close(plan.sum(0), torch.full((4,), 10.0, dtype=torch.float64), atol=1e-3, rtol=0)
    torch.testing.assert_close(plan.sum(1), torch.ones(40, dtype=torch.float64))
    training = router.train()(x).counts
    plain = router.eval()(x)
    assert training.max() < plain.counts.max()
    best = logits.argmax(1)
    wanted = F.one_hot(best, 4) * logits.sigmoid()
    torch.testing.assert_close(dense(plain, 40, 4), wanted)


def test_a_loop_goes_through_its_layers_and_only_the_last_passes_learn() -> None:
    span = Choice.of("model", "loop", kind="span", times=3, through=1, inject=True).build(WIDTH)
    weight = torch.randn(WIDTH, WIDTH, requires_grad=True)
    x = torch.randn(1, 4, WIDTH)
    found, notes = span(lambda x, *_: (x + (x @ weight).tanh(), {"blocks.0.seen": torch.ones(())}), x, NOWHERE, [None])
    state = x + (x @ weight).tanh()
    state = state + x + ((state + x) @ weight).tanh()
    last = state.detach() + x
    wanted = last + (last @ weight).tanh()
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(each.sum(), weight)[0] for each in (found, wanted)]
    torch.testing.assert_close(*gradients)
    assert notes["blocks.0.seen"] == 3


@pytest.mark.parametrize("training", [True, False])
def test_mixture_of_depths_chooses_by_rank_in_training_and_by_sign_without(training: bool) -> None:
    torch.manual_seed(2)
    span = Choice.of("model", "mixture_of_depths", kind="span", capacity=0.3, loss=1.0).build(WIDTH).train(training)
    x = torch.randn(2, 9, WIDTH)

    def inner(x: Tensor, where: Where, caches: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return x + x.cumsum(1), {}

    found, notes = span(inner, x, NOWHERE, [None])
    for row in range(2):
        scores = x[row] @ span.router.weight[0]
        best = scores.argsort(descending=True)[:3].tolist()
        chosen = sorted(best) if training else [t for t in range(9) if scores[t] > 0]
        wanted, total = x[row].clone(), torch.zeros(WIDTH)
        for t in chosen:
            total = total + x[row, t]
            wanted[t] = x[row, t] + scores[t].sigmoid() * total
        torch.testing.assert_close(found[row], wanted)
    assert set(notes) == ({"loss.choice"} if training else set())


def test_expert_choice_gives_each_expert_its_best_tokens_and_keeps_to_its_own_without_training() -> None:
    torch.manual_seed(6)
    router = scattered(Choice.of("model", "expert_choice", kind="router", active=2, loss=1.0).build(WIDTH, 4))
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    logits = router.gate(x).view(10, 4)
    shares = logits.softmax(-1)
    routing = router.train()(x)
    wanted, taken = torch.zeros_like(shares), torch.zeros_like(shares)
    for e in range(4):
        for n in shares[:, e].argsort(descending=True)[:5].tolist():
            wanted[n, e], taken[n, e] = shares[n, e], 1
    torch.testing.assert_close(dense(routing, 10, 4), wanted)
    entropy = -(taken * logits.sigmoid().log() + (1 - taken) * (1 - logits.sigmoid()).log()).mean()
    torch.testing.assert_close(routing.notes["loss.choice"], entropy)
    torch.testing.assert_close(dense(router.eval()(x), 10, 4), torch.where(logits > 0, shares, 0.0))
