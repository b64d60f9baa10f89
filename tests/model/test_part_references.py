"""Each part against a slow reference written from its paper, one token at a time, in float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.config import Choice
from shoestring.contract.batch import Inputs
from shoestring.method import methods
from shoestring.model import ModelConfig, Transformer
from shoestring.model.block import Place
from shoestring.model.delta_rule import delta_rule
from shoestring.model.linear_recurrence import linear_recurrence
from shoestring.model.rotary import Rotary, rotate
from shoestring.model.routers.sinkhorn import Sinkhorn
from shoestring.model.routing import Routing
from shoestring.model.span import Where
from tests.model.recurrent_references import RECURRENT
from tests.model.sparse_references import SPARSE

WIDTH, HEADS, HEAD, LENGTH = 12, 2, 8, 11

NOWHERE = Where(((torch.ones(16, 1, 2), torch.zeros(16, 1, 2)),), None, None)

Reference = Callable[[Any, Tensor], Tensor]
"""(the part, x [T, width]) -> y [T, width]"""


def lightning(mixer: Any, x: Tensor) -> Tensor:
    slopes = [2 ** (-8 * (h + 1) / HEADS) * (1 - 1 / (3 + 1e-5) + 1e-5) for h in range(HEADS)]
    inner, rows = HEADS * HEAD, []
    state = [torch.zeros(HEAD, HEAD, dtype=x.dtype) for _ in range(HEADS)]
    for token in x:
        projected = mixer.qkv_gate.weight @ token
        q, k, v = F.silu(projected[: 3 * inner]).view(3, HEADS, HEAD)
        answers = []
        for h in range(HEADS):
            state[h] = math.exp(-slopes[h]) * state[h] + torch.outer(k[h], v[h])
            answers.append(state[h].T @ q[h])
        o = torch.cat(answers)
        normed = mixer.norm.weight * o / (o.square().mean() + mixer.norm.epsilon).sqrt()
        rows.append(mixer.output.weight @ (projected[3 * inner :].sigmoid() * normed))
    return torch.stack(rows)


def convolved(taps: Tensor, inputs: list[Tensor]) -> Tensor:
    """The last entry of a causal convolution."""
    count = taps.shape[1]
    return sum(
        (taps[:, count - 1 - back] * inputs[-1 - back] for back in range(min(count, len(inputs)))), torch.zeros(())
    )


def mamba2(mixer: Any, x: Tensor) -> Tensor:
    inner, state_size, heads, head, groups = mixer.inner, mixer.state, mixer.heads, mixer.head, mixer.groups
    state = torch.zeros(heads, state_size, head, dtype=x.dtype)
    seen: list[Tensor] = []
    rows = []
    for token in x:
        z, mixed, dt = (mixer.input.weight @ token).split([inner, inner + 2 * groups * state_size, heads])
        seen.append(mixed)
        mixed = F.silu(convolved(mixer.taps, seen) + mixer.taps_bias)
        values, b, c = mixed.split([inner, groups * state_size, groups * state_size])
        values, b, c = values.view(heads, head), b.view(groups, -1), c.view(groups, -1)
        dt = (1 + (dt + mixer.dt_bias).exp()).log()
        y = []
        for h in range(heads):
            state[h] = (-dt[h] * mixer.a_log[h].exp()).exp() * state[h] + dt[h] * torch.outer(
                b[h * groups // heads], values[h]
            )
            y.append(c[h * groups // heads] @ state[h] + mixer.skip[h] * values[h])
        gated = torch.cat(y) * z * z.sigmoid()
        normed = mixer.norm.weight * gated / (gated.square().mean() + mixer.norm.epsilon).sqrt()
        rows.append(mixer.output.weight @ normed)
    return torch.stack(rows)


def gated_delta(mixer: Any, x: Tensor) -> Tensor:
    inner = HEADS * HEAD
    state = torch.zeros(HEADS, HEAD, HEAD, dtype=x.dtype)
    seen: list[Tensor] = []
    rows = []
    for token in x:
        mixed, gate, step, strength = (mixer.input.weight @ token).split([3 * inner, inner, HEADS, HEADS])
        seen.append(mixed)
        q, k, v = F.silu(convolved(mixer.taps, seen)).view(3, HEADS, HEAD)
        o = []
        for h in range(HEADS):
            key, query = k[h] / k[h].norm(), q[h] / q[h].norm()
            a = (-mixer.a_log[h].exp() * (1 + (step[h] + mixer.dt_bias[h]).exp()).log()).exp()
            b = strength[h].sigmoid()
            erased = torch.eye(HEAD, dtype=x.dtype) - b * torch.outer(key, key)
            state[h] = a * erased @ state[h] + b * torch.outer(key, v[h])
            answer = state[h].T @ query / math.sqrt(HEAD)
            o.append(mixer.norm.weight * answer / (answer.square().mean() + mixer.norm.epsilon).sqrt())
        rows.append(mixer.output.weight @ (torch.cat(o) * gate * gate.sigmoid()))
    return torch.stack(rows)


def grouped_differential(mixer: Any, x: Tensor) -> Tensor:
    half, groups = HEAD // 2, 1
    projected = x @ mixer.qkv.weight.T
    signal, noise, keys, values = projected.split([HEADS * half, groups * half, 2 * groups * half, groups * HEAD], -1)
    tables = Rotary(half, LENGTH, 10000.0).double()(0, LENGTH)
    signal, noise, keys = (rotate(part.view(1, LENGTH, -1, half), *tables)[0] for part in (signal, noise, keys))
    start = 0.8 - 0.6 * math.exp(-0.3)
    a, b, c, d = mixer.mixes
    mix = (a @ b).exp() - (c @ d).exp() + start
    rows = []
    for t in range(LENGTH):
        o = []
        for h in range(HEADS):
            first = (keys[: t + 1, 0] @ signal[t, h] / math.sqrt(half)).softmax(0)
            second = (keys[: t + 1, 1] @ noise[t, 0] / math.sqrt(half)).softmax(0)
            found = (first - mix * second) @ values[: t + 1]
            normed = mixer.norm.weight * found / (found.square().mean() + mixer.norm.epsilon).sqrt()
            o.append((1 - start) * normed)
        rows.append(mixer.output.weight @ torch.cat(o))
    return torch.stack(rows)


def polynorm(mixer: Any, x: Tensor) -> Tensor:
    z = x @ mixer.input.weight.T
    total = mixer.shift
    for i in (1, 2, 3):
        total = total + mixer.powers[i - 1] * z**i / ((z**i).square().mean(-1, keepdim=True) + mixer.epsilon).sqrt()
    return total @ mixer.output.weight.T


def rational(part: Any, x: Tensor) -> Tensor:
    size = x.shape[-1] // len(part.above[0])
    found = torch.empty_like(x)
    for place in range(x.shape[-1]):
        group, z = place // size, x[:, place]
        above = sum(a[group] * z**power for power, a in enumerate(part.above))
        below = sum(b[group] * z ** (power + 1) for power, b in enumerate(part.below))
        found[:, place] = above / (1 + abs(below))
    return found


def group_rational(mixer: Any, x: Tensor) -> Tensor:
    return rational(mixer.second, rational(mixer.first, x) @ mixer.input.weight.T) @ mixer.output.weight.T


def normformer(mixer: Any, x: Tensor) -> Tensor:
    z = x @ mixer.input.weight.T
    z = z * (1 + (z / math.sqrt(2)).erf()) / 2
    z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, unbiased=False, keepdim=True) + mixer.norm.epsilon).sqrt()
    return (mixer.norm.weight * z + mixer.norm.bias) @ mixer.output.weight.T


def boom(mixer: Any, x: Tensor) -> Tensor:
    z = x @ mixer.input.weight.T + mixer.input.bias
    z = z / (1 + (-1.702 * z).exp())
    return mixer.output.weight * (z[:, :WIDTH] + z[:, WIDTH : 2 * WIDTH])


def moe(mixer: Any, x: Tensor) -> Tensor:
    each, rows = mixer.output.weight.shape[2], []
    for token in x:
        shares = (mixer.router.gate.weight @ token).softmax(0)
        best = sorted(range(mixer.experts), key=lambda e: -float(shares[e].detach()))[:2]
        total = sum(shares[e] for e in best)
        y = torch.zeros(WIDTH, dtype=x.dtype)
        for e in best:
            hidden = mixer.input.weight[e] @ token
            y = y + shares[e] / total * (mixer.output.weight[e] @ (F.silu(hidden[:each]) * hidden[each:]))
        rows.append(y)
    return torch.stack(rows)


def duo(mixer: Any, x: Tensor) -> Tensor:
    """Each token by the way that scores highest."""
    rows = []
    for token in x:
        way = int((mixer.router.weight @ token).argmax())
        if way == 0:
            rows.append(torch.zeros_like(token))
            continue
        layer = (mixer.small, mixer.big)[way - 1]
        gate, up = (layer.gate_up.weight @ token).chunk(2)
        rows.append(layer.output.weight @ (gate / (1 + (-gate).exp()) * up))
    return torch.stack(rows)


def lact(mixer: Any, x: Tensor) -> Tensor:
    """The networks' gradients by autograd."""
    inner, rows = HEADS * HEAD, []
    weights = [[w[h].detach().clone() for w in (mixer.gate, mixer.up, mixer.down)] for h in range(HEADS)]
    lengths = [[w.norm(dim=-1, keepdim=True) for w in own] for own in weights]

    def network(own: list[Tensor], u: Tensor) -> Tensor:
        return own[2] @ (F.silu(own[0] @ u) * (own[1] @ u))

    chunk: list[tuple[Tensor, Tensor, Tensor]] = []
    for token in x:
        projected = mixer.input.weight @ token
        q, k, v = F.silu(projected[: 3 * inner]).view(3, HEADS, HEAD).detach()
        rates = mixer.rate * (1 + (projected[3 * inner :] + 1).exp()).log().view(HEADS, 3).detach()
        answers = [network(own, q[h] / q[h].norm()) for h, own in enumerate(weights)]
        normed = [mixer.norm.weight * o / (o.square().mean() + mixer.norm.epsilon).sqrt() for o in answers]
        rows.append(mixer.output.weight @ torch.cat(normed))
        chunk.append((k, v, rates))
        if len(chunk) == mixer.chunk:
            for h in range(HEADS):
                own, steps = [w.requires_grad_() for w in weights[h]], [torch.zeros_like(w) for w in weights[h]]
                for k, v, rates in chunk:
                    gained = network(own, k[h] / k[h].norm()) @ v[h]
                    for place, gradient in enumerate(torch.autograd.grad(gained, own)):
                        steps[place] += rates[h, place] * gradient
                moved = [(w + step).detach() for w, step in zip(own, steps, strict=True)]
                weights[h] = [
                    w / w.norm(dim=-1, keepdim=True) * length for w, length in zip(moved, lengths[h], strict=True)
                ]
            chunk = []
    return torch.stack(rows)


def grouped(mixer: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [T, H, d], keys and values [T, Hk, d] of attention, normed and not rotated."""
    q, k, v = (x @ mixer.qkv.weight.T).view(LENGTH, -1, HEAD).split([HEADS, 1, 1], 1)
    norms = [
        norm.weight * part / (part.square().mean(-1, keepdim=True) + norm.epsilon).sqrt()
        for norm, part in ((mixer.query_norm, q), (mixer.key_norm, k))
    ]
    return norms[0], norms[1], v


def lolcats(mixer: Any, x: Tensor) -> Tensor:
    q, k, v = grouped(mixer, x)
    tables = Rotary(HEAD, LENGTH, 10000.0).double()(0, LENGTH)
    q, k = (rotate(part[None], *tables)[0] for part in (q, k))

    def features(own: Tensor, x: Tensor) -> Tensor:
        return torch.cat(((own @ x).softmax(0), (-own @ x).softmax(0)))

    rows = []
    for t in range(LENGTH):
        o = []
        for h in range(HEADS):
            asked = features(mixer.query_map.weight[h], q[t, h])
            near = range(max(0, t - mixer.window + 1), t + 1)
            scores = torch.stack([k[i, 0] @ q[t, h] / math.sqrt(HEAD) for i in near])
            weights = list(mixer.mix[h].sigmoid() * (scores - scores.max()).exp())
            far = range(near.start)
            weights = [asked @ features(mixer.key_map.weight[h], k[i, 0]) for i in far] + weights
            above = torch.stack([w * v[i, 0] for w, i in zip(weights, (*far, *near), strict=True)])
            o.append(above.sum(0) / torch.stack(weights).sum())
        rows.append(mixer.output.weight @ torch.cat(o))
    return torch.stack(rows)


def supra(mixer: Any, x: Tensor) -> Tensor:
    q, k, v = grouped(mixer, x)
    tables = Rotary(HEAD, LENGTH, 10000.0).double()(0, LENGTH)
    rows, state = [], torch.zeros(HEADS, HEAD, HEAD, dtype=x.dtype)
    for t in range(LENGTH):
        cos, sin = (table[t : t + 1] for table in tables)
        key = (mixer.key_map.weight[0] @ k[t, 0] + mixer.key_map.bias[0]).relu()
        key = rotate(key[None, None, None], cos, sin).flatten()
        o = []
        for h in range(HEADS):
            asked = (mixer.query_map.weight[h] @ q[t, h] + mixer.query_map.bias[h]).relu()
            asked = rotate(asked[None, None, None], cos, sin).flatten()
            state[h] = math.exp(-(2 ** (-8 * (h + 1) / HEADS))) * state[h] + torch.outer(key, v[t, 0]) / math.sqrt(HEAD)
            found = state[h].T @ asked
            o.append((found - found.mean()) / (found.var(unbiased=False) + mixer.epsilon).sqrt())
        rows.append(mixer.output.weight @ torch.cat(o))
    return torch.stack(rows)


def tied(mixer: Any, x: Tensor) -> Tensor:
    """Of the layer that leads, and of one that follows it with a gain."""
    follower = Choice.of("model", "tied", kind="channel mixer", leads=False, mixer="gelu").build(WIDTH, 28).double()
    with torch.no_grad():
        follower.gain.weight.copy_(torch.arange(WIDTH))
    trail: dict[str, Any] = {}
    rows = torch.stack([mixer.mixer.output.weight @ F.gelu(mixer.mixer.input.weight @ token) for token in x])
    mixer.route(x, trail)
    torch.testing.assert_close(follower(x, follower.route(x, trail)), rows * torch.arange(WIDTH))
    return rows


TOKEN_MIXERS: dict[str, tuple[Reference, dict[str, Any]]] = {
    "lightning": (lightning, {"chunk": 4}),
    "mamba2": (mamba2, {"chunk": 4, "state": 5, "expand": 2.0, "groups": 3}),
    "gated_delta": (gated_delta, {"chunk": 4}),
    "grouped_differential": (grouped_differential, {}),
    "lact": (lact, {"chunk": 4, "rate": 0.5}),
    "lolcats": (lolcats, {"features": 5, "window": 3}),
    "supra": (supra, {"chunk": 4}),
    **SPARSE,
    **RECURRENT,
}
SHARED_KEYS = {"grouped_differential", "infllm_v2", "lavo", "fixed_point", "mosa", "lolcats", "supra"}
"""Mixers whose heads share keys here."""
CHANNEL_MIXERS: dict[str, tuple[Reference, dict[str, Any]]] = {
    "moe": (moe, {"experts": 4}),
    "boom": (boom, {}),
    "duo": (duo, {"small": 0.25}),
    "polynorm": (polynorm, {}),
    "group_rational": (group_rational, {"groups": 4}),
    "normformer": (normformer, {}),
    "tied": (tied, {"mixer": "gelu"}),
}
ELSEWHERE = {"attention", "swiglu", "gelu", "squared_relu"}
"""Parts whose references are in test_model_parts.py."""


def scattered(part: Any) -> Any:
    """The part in float64, away from its start."""
    part.double()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return part


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


def test_nano_embedding() -> None:
    """A token is its row of the table times the matrix, and a tied head scores hidden states with the same product."""
    torch.manual_seed(6)
    options: dict[str, Any] = {"layers": 1, "width": WIDTH, "heads": HEADS, "vocabulary": 9, "context": 8}
    model: Any = Transformer(
        ModelConfig(**options, embedding=Choice.of("model", "nano", kind="embedding", rank=5))
    ).double()
    whole = model.embedding.weight @ model.narrow.weight
    assert whole.shape == (9, WIDTH)
    ids = torch.tensor([[3, 0, 8]])
    torch.testing.assert_close(model.embedded(ids), whole[ids])
    reading = model.read(Inputs(ids))
    torch.testing.assert_close(reading.logits(), reading.hidden @ whole.T)
    assert sum(p.numel() for n, p in model.named_parameters() if "blocks" not in n) == 5 * (9 + WIDTH) + WIDTH


@pytest.mark.parametrize("packed", [False, True])
def test_scone(packed: bool) -> None:
    """The longest listed n-gram that ends at a place, by a slow search, and the embedding that the network makes of it."""
    torch.manual_seed(2)
    grams = [(1, 2), (2, 1), (1, 2, 1), (3, 3), (0, 1, 2)]
    listed = [" ".join(map(str, gram)) for gram in grams]
    span = Choice.of("model", "scone", kind="span", ngrams=listed, inner=4, hidden=6).build(WIDTH)
    span.told(5)
    span.double().eval()
    values = torch.tensor([[1, 2, 1, 2, 3, 3, 3, 0, 1, 2], [0, 1, 2, 1, 4, 1, 2, 2, 1, 0]])
    documents = (torch.arange(10) > 1).long().expand(2, -1) if packed else None
    x = torch.randn(2, 10, WIDTH, dtype=torch.float64)
    tables = (torch.ones(16, 1, 2), torch.zeros(16, 1, 2))
    found, _ = span(lambda x, *_: (x, {}), x, Where((tables,), None, documents, values=values), [None])
    wanted = x.clone()
    for row in range(2):
        for place in range(10):
            for gram in sorted(grams, key=len):
                start = place - len(gram) + 1
                if start < 0 or tuple(values[row, start : place + 1].tolist()) != gram:
                    continue
                if packed and start <= 1 < place:
                    continue
                padded = [5] * (3 - len(gram)) + list(gram)
                inside = torch.cat([span.tokens.weight[token] for token in padded])
                wanted[row, place] = span.second.weight @ F.gelu(span.first.weight @ inside)
    assert not torch.equal(wanted, x)
    torch.testing.assert_close(found, wanted)
    assert span.tabulate() == span._own_flops(False)
    again, _ = span(lambda x, *_: (x, {}), x, Where((tables,), None, documents, values=values), [None])
    torch.testing.assert_close(again, wanted)
    assert span.train()._table is None


@pytest.mark.parametrize("packed", [False, True])
def test_byte_pool(packed: bool) -> None:
    """Patches by a slow loop: each byte is told of the last whole patch of its document, and of no other."""
    torch.manual_seed(9)
    length, size = 14, 3
    span = scattered(Choice.of("model", "byte_pool", kind="span", patch=size).build(WIDTH))
    documents = (torch.arange(length) > 7).long().expand(2, -1) if packed else None
    before = torch.ones(length, length, dtype=torch.bool).tril()
    mask = None if documents is None else ((documents[:, :, None] == documents[:, None]) & before)[:, None]
    x = torch.randn(2, length, WIDTH, dtype=torch.float64)

    def inner(x: Tensor, where: Where, caches: Any) -> tuple[Tensor, dict[str, Tensor]]:
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() if where.mask is None else where.mask[:, 0]
        weights = torch.where(seen, 1.0, -torch.inf).double().softmax(-1)
        return torch.tanh(weights @ x), {}

    tables = (torch.ones(32, 1, 2), torch.zeros(32, 1, 2))
    found, _ = span(inner, x, Where((tables,), mask, documents), [None])
    for row in range(2):
        wanted = x[row].clone()
        for first, last in ((0, 8), (8, length)) if packed else ((0, length),):
            patches: list[Tensor] = []
            for place in range(first, last):
                number = place - first
                if (number + 1) % size == 0:
                    part = x[row, place - size + 1 : place + 1]
                    scores = part @ span.query.weight[0] / math.sqrt(WIDTH) + span.place_scores
                    patches.append(span.pool.weight @ (scores.softmax(0)[:, None] * part).sum(0))
                if patches:
                    h = torch.stack(patches).mean(0).tanh()
                    wanted[place] = x[row, place] + span.back.weight @ h + span.offsets[(number + 1) % size]
        torch.testing.assert_close(found[row], wanted)


@pytest.mark.parametrize("packed", [False, True])
def test_hash_projection(packed: bool) -> None:
    """Hashes, minima and counts in plain integers, of the trigrams that end at each token."""
    torch.manual_seed(2)
    options = {"features": 7, "hashes": 5, "unit": 3, "window": 2}
    span = Choice.of("model", "hash_projection", kind="span", **options).build(WIDTH).double()
    span.told(9)
    values = torch.randint(9, (2, 13))
    documents = (torch.arange(13) > 5).long().expand(2, -1) if packed else None
    found, _ = span(
        lambda x, *_: (x, {}), torch.zeros(2, 13, WIDTH).double(), Where((), None, documents, values=values), [None]
    )

    def spread(number: int, factor: int) -> int:
        mixed = (number + 1) * factor % 2**64
        mixed = (mixed ^ (mixed >> 29)) * factor % 2**64
        return (mixed >> 32) % 2**31

    for row in range(2):
        for first, last in ((0, 6), (6, 13)) if packed else ((0, 13),):
            text = values[row, first:last].tolist()
            minima: list[list[int]] = []
            filters: list[Tensor] = []
            for place in range(len(text)):
                gram = sum((text[place - back] + 1) * 11**back for back in range(3) if place >= back)
                a, b = (spread(gram, factor % 2**64) for factor in (-7046029254386353131, -4417276706812531889))
                minima.append([(a + i * b) % (2**31 - 1) for i in range(5)])
                least = [min(one[i] for one in minima[-3:]) for i in range(5)]
                counts = torch.zeros(7, dtype=torch.float64)
                for value in least:
                    counts[value % 7] += 1
                filters.append(counts / math.sqrt(5))
                both = torch.cat((filters[-1], filters[-2] if place else torch.zeros(7, dtype=torch.float64)))
                torch.testing.assert_close(found[row, first + place], span.bottleneck.weight @ both)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_space_byte(training: bool, packed: bool) -> None:
    """Which bytes go through, by the bytes of a text; the layer within sees those alone, and none of another document."""
    text = b"so, 12\xc3\xa9 (a  b)" + bytes([7])
    torch.manual_seed(9)
    span = Choice.of("model", "space_byte", kind="span", capacity=0.2).build(WIDTH).train(training)
    values = torch.tensor([list(text), list(text[::-1])])
    values[1, -1] = 256  # the end token
    documents = (torch.arange(values.shape[1]) > 8).long().expand(2, -1) if packed else None
    x = torch.randn(*values.shape, WIDTH, dtype=torch.float64)

    def inner(x: Tensor, where: Where, caches: Any) -> tuple[Tensor, dict[str, Tensor]]:
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() if where.mask is None else where.mask[:, 0]
        weights = torch.where(seen, 1.0, -torch.inf).double().softmax(-1)
        return torch.tanh(weights @ x), {}

    before = torch.ones(values.shape[1], values.shape[1], dtype=torch.bool).tril()
    mask = None if documents is None else ((documents[:, :, None] == documents[:, None]) & before)[:, None]
    tables = (torch.ones(32, 1, 2), torch.zeros(32, 1, 2))
    found, _ = span(inner, x, Where((tables,), mask, documents, values=values), [None])
    word = {*b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", *range(0x80, 0xC0)}
    for row in range(2):
        through: list[int] = []
        for place, byte in enumerate(values[row].tolist()):
            first = place == 0 or (packed and place == 9)
            if first or (byte not in word and values[row, place - 1].item() in word):
                through.append(place)
        if training:
            through = through[:4]  # a fifth of 18 places
        else:
            assert len(through) > 4
        wanted = x[row].clone()
        for place in through:
            seen = [p for p in through if p <= place and (not packed or (p > 8) == (place > 8))]
            wanted[place] = x[row, seen].mean(0).tanh()
        torch.testing.assert_close(found[row], wanted)


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
