"""Prompts that lose tokens by a schedule, against a reference in loops: read, written, trained; and the search for schedules."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from shoestring.budget.ledger import MODEL
from shoestring.config import Choice
from shoestring.contract.batch import IGNORED, Batch, Inputs
from shoestring.contract.length_drop import DroppingCache, counts_of, even_shares
from shoestring.contract.objective import At
from shoestring.decode import Engine
from shoestring.decode.length_search import FoundSchedule, front, read_thinned, search_schedules, within
from shoestring.decode.separate_store import SeparateStore
from shoestring.decode.text_cache import TextStore
from shoestring.errors import UsageError
from shoestring.model import Transformer
from shoestring.model.rotary import rotate
from shoestring.objective.cross_entropy import plain
from shoestring.objective.length_adaptive import LengthAdaptiveTraining
from tests.decode.cached_texts import COUNT, TEXTS, written
from tests.decode.random_models import wrapped
from tests.decode.test_lazyllm import deep
from tests.flop_counting import CPU_ATTENTION


def store(**options: Any) -> TextStore:
    made: TextStore = Choice.of("decode", "length_adaptive", kind="cache store", **options).build()
    return made


def reference(model: Transformer, text: list[int], prompt: int, counts: list[int]) -> dict[int, Tensor]:
    """The logits after each place that is left at the end, in loops over tokens."""
    x = {p: model.embedding.weight[token] for p, token in enumerate(text)}
    looked: dict[int, float] = {}
    blocks: list[Any] = list(model.blocks)
    for layer, block in enumerate(blocks):
        if layer:
            ranked = sorted((p for p in x if p < prompt - 1), key=lambda p: (-looked[p], p))
            stay = {*ranked[: counts[layer] - 1], *range(prompt - 1, len(text))}
            x = {p: x[p] for p in sorted(stay)}
        mixer, kept = block.token_mixer, {}
        for p in x:
            parts = mixer.qkv(block.token_norm(x[p])).view(-1, 8)
            tables = model.rotary.cos[p], model.rotary.sin[p]
            q, k = rotate(mixer.query_norm(parts[:4]), *tables), rotate(mixer.key_norm(parts[4:6]), *tables)
            kept[p] = q, k, parts[6:]
        made, looked = {}, dict.fromkeys(x, 0.0)
        for p in x:
            seen, mixed = [s for s in x if s <= p], []
            for head in range(4):
                scores = torch.stack([kept[p][0][head] @ kept[s][1][head // 2] for s in seen]) / 8**0.5
                weights = scores.softmax(0)
                mixed.append((weights[:, None] * torch.stack([kept[s][2][head // 2] for s in seen])).sum(0))
                if p == prompt - 1:
                    for s, w in zip(seen, weights.tolist(), strict=True):
                        looked[s] += w / 4
            middle = x[p] + mixer.output(torch.cat(mixed))
            made[p] = middle + block.channel_mixer(block.channel_norm(middle))
        x = made
    return {p: model.norm(each) @ model.embedding.weight.T for p, each in x.items()}


@torch.no_grad()
def test_what_is_written_is_that_of_a_slow_reference() -> None:
    model, shares = deep(), (1.0, 0.6, 0.6, 0.2)
    for text in TEXTS[:1]:
        whole = list(text)
        for _ in range(COUNT):
            logits = reference(model, whole, len(text), counts_of(shares, len(text)))
            whole.append(int(logits[len(whole) - 1].argmax()))
        for tokens in (64, 5):  # the prompt comes whole, or in pieces
            engine = Engine(
                model, store=SeparateStore(model, 300, 2, store=store(shares=shares)), rows=2, tokens=tokens
            )
            assert written(engine, [text])[0] == whole[len(text) :]


def test_a_budget_is_the_share_of_the_operations() -> None:
    model, ids = deep(), torch.arange(60) % 40
    whole = model.read(Inputs(ids[None])).cost.flops
    for budget in (0.4, 0.6, 1.0):
        shares = even_shares(4, budget)
        assert shares[0] == 1
        assert sum(shares) / 4 == pytest.approx(budget, abs=1e-3)
        cache = DroppingCache(counts_of(shares, 60), 60, 60)
        with torch.no_grad():
            reading = model.read(Inputs(ids[None]), cache)
        assert reading.cost.flops / whole == pytest.approx(budget, abs=0.06)
        assert [layer.held for layer in cache.layers] == counts_of(shares, 60)
        if budget == 1:
            torch.testing.assert_close(reading.logits(), model.read(Inputs(ids[None])).logits(), atol=1e-4, rtol=1e-4)


def test_loss_and_gradient_are_those_of_the_formula_and_are_charged() -> None:
    model = deep().requires_grad_(True)
    ids = torch.randint(40, (2, 12), generator=torch.Generator().manual_seed(4))
    targets = ids.roll(-1, 1)
    targets[:, -1] = IGNORED
    one, at = LengthAdaptiveTraining(plain, drop=0.4, drawn=1, weight=0.7), At(step=3)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        loss = one(model, Batch(Inputs(ids), targets), at)
        loss.mean.backward()
    assert loss.spent[MODEL].flops == pytest.approx(counter.get_total_flops(), rel=0.1)
    name = "blocks.1.token_mixer.qkv.weight"
    found = model.get_parameter(name).grad
    model.zero_grad()

    generator, total, count, least = at.generator(), torch.zeros(()), 0, list[int]()
    whole = model(ids).log_softmax(-1)
    for row in range(2):
        prompt = int(torch.randint(6, 13, (1,), generator=generator))
        for draw in (False, True):
            if prompt == 12:  # nothing follows that is a target
                continue
            counts = one.counts(4, prompt, generator if draw else None)
            assert counts[0] == prompt
            assert all(b <= a and b >= 0.6 * a - 1e-9 for a, b in itertools.pairwise(counts))
            least += [] if draw else counts
            said = reference(model, ids[row].tolist(), prompt, counts)
            for place in range(prompt - 1, 11):
                p, q = whole[row, place].detach(), said[place].log_softmax(-1)
                total, count = total + (p.exp() * (p - q)).sum(), count + 1
    assert min(least) < 6
    text = torch.nn.functional.cross_entropy(whole[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    expected = text + 0.7 * total / count
    torch.testing.assert_close(loss.mean, expected, atol=1e-4, rtol=1e-4)
    expected.backward()
    assert found is not None
    torch.testing.assert_close(found, model.get_parameter(name).grad, atol=1e-3, rtol=1e-3)


def test_a_search_finds_schedules_that_none_beats() -> None:
    model = deep()
    prompts = [torch.tensor(text) for text in TEXTS]
    found, spent = search_schedules(model, prompts, generations=3, population=4, seed=1)
    assert spent.calls > 3 * 8
    flops, losses = [one.flops for one in found], [one.loss for one in found]
    assert flops == sorted(flops)
    assert losses == sorted(losses, reverse=True)
    assert found[-1].loss == pytest.approx(0, abs=1e-5)  # of all tokens
    chosen = within(found, 0.7)
    assert chosen.flops <= 0.7
    with torch.no_grad():
        ids = prompts[0]
        reading = read_thinned(model, ids, chosen.shares)
        assert reading.hidden.shape[1] == counts_of(chosen.shares, len(ids))[-1]
        assert reading.cost.flops < model.read(Inputs(ids[None])).cost.flops
    with pytest.raises(UsageError, match="the least takes"):
        within(found, 0.01)
    made = [FoundSchedule((), flops, loss) for flops, loss in ((0.5, 2.0), (0.4, 3.0), (0.6, 2.5), (0.5, 1.0))]
    assert [(one.flops, one.loss) for one in front(made)] == [(0.4, 3.0), (0.5, 1.0)]


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(UsageError, match=r"the least budget is 0\.25"):
        store(budget=0.1).cache(deep(), 10)
    with pytest.raises(UsageError, match="give 4, the first of them 1"):
        store(shares=(0.5, 0.5)).cache(deep(), 10)
    with pytest.raises((UsageError, ValueError), match="more than the one before"):
        store(shares=(1.0, 0.5, 0.6, 0.1))
    model = wrapped("gpt2")
    with pytest.raises(UsageError, match="only a native model"):
        written(Engine(model, store=SeparateStore(model, 300, 1, store=store()), rows=1), TEXTS[:1])
    packed = Inputs(torch.zeros(1, 4, dtype=torch.int64), documents=torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(UsageError, match=r"data\.packing = stream"):
        LengthAdaptiveTraining(plain)(deep(), Batch(packed, packed.values), At())
