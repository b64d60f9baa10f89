"""Edits that say how layers attend, against slow references in float64; what their caches hold, and in which passes it is read."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shoestring.config import Choice
from shoestring.contract.attention_rule import AttentionRule, AttentionSizes
from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Pass
from shoestring.contract.edit import Edit, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.contract.objective import At
from shoestring.decode import Engine, Request, Sampling
from shoestring.errors import UsageError
from shoestring.parallel.activation_checkpointing import checkpoint_layers
from shoestring.surgery.beacons import whole_text
from shoestring.surgery.dual_chunk import DualChunk
from shoestring.surgery.eviction_gate import EvictedShares, EvictionGate
from shoestring.surgery.partial_context import PartialContext
from tests.decode.random_models import VOCABULARY, native, one_by_one, wrapped

MODELS: dict[str, Callable[[], LanguageModule]] = {
    "native": native,
    "gpt2": lambda: wrapped("gpt2"),
    "gemma": lambda: wrapped("gemma"),
}
TEXT = tuple((7 * place * place + 3) % VOCABULARY for place in range(26))
COUNT = 10


def edited(made: LanguageModule, name: str, **options: Any) -> tuple[LanguageModule, Edit]:
    one: Edit = Choice.of("surgery", name, kind="edit", **options).build()
    made = one.apply(made, one.decide(made, Evidence(seed=5)))
    torch.manual_seed(4)
    with torch.no_grad():
        for rule in rules(made):
            for weight in rule.parameters():
                weight.normal_(std=0.5)
    return made, one


def rules(made: LanguageModule) -> list[Any]:
    anatomy: Any = made.anatomy()
    return [rule for rule in anatomy.rules() if rule is not None]


def sample(length: int = 13) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries of four heads, keys and values of two, and hidden states, of two texts."""
    torch.manual_seed(0)
    heads = [torch.randn(2, count, length, 8, dtype=torch.float64) for count in (4, 2, 2)]
    return heads[0], heads[1], heads[2], torch.randn(2, length, 16, dtype=torch.float64)


def slow_attention(q: Tensor, k: Tensor, v: Tensor, added: Any) -> Tensor:
    """added(text, head of keys, token, seen token): to the score; None: not seen. Of floats."""
    out = torch.zeros_like(q)
    for text in range(q.shape[0]):
        for head in range(q.shape[1]):
            of = head // (q.shape[1] // k.shape[1])
            for token in range(q.shape[2]):
                scores = {}
                for seen in range(token + 1):
                    more = added(text, of, token, seen)
                    if more is not None:
                        scores[seen] = float(q[text, head, token] @ k[text, of, seen]) / math.sqrt(q.shape[3]) + more
                total = sum(math.exp(score) for score in scores.values())
                for seen, score in scores.items():
                    out[text, head, token] += math.exp(score) / total * v[text, of, seen]
    return out


def in_passes(rule: AttentionRule, q: Tensor, k: Tensor, v: Tensor, x: Tensor, sizes: list[int]) -> tuple[Tensor, Any]:
    """What a layer's own cache answers to the first text, read in passes of these sizes."""
    layer, found, start = rule.new_cache(1), [], 0
    for size in sizes:
        part = slice(start, start + size)
        layer.begin(Pass([start], [size], size, None, q.device))
        rule.hear(x[:1, part])
        found.append(layer.attend(q[:1, :, part], k[:1, :, part], v[:1, :, part]))
        start += size
    return torch.cat(found, 2), layer


def gate(delay: int = 2, **more: Any) -> EvictionGate:
    made = EvictionGate(
        AttentionSizes(16, 4, 2),
        more.pop("shares", EvictedShares(1)),
        **{"place": 0, "delay": delay, "temperature": 0.5, "offset": 0.3, "scale": 1.0, "seed": 1, **more},
    )
    torch.manual_seed(3)
    made.gate = torch.nn.Parameter(torch.randn(2, 16, dtype=torch.float64) * 0.3)
    return made


def test_eviction_gates_are_those_of_the_formula_in_training_and_after() -> None:
    q, k, v, x = sample()
    rule = gate()
    logits = x.float() @ rule.gate.detach().float().T - 0.3  # [text, token, head]
    noise = rule._noise(logits.transpose(1, 2))
    alpha = ((logits.transpose(1, 2) + noise) / 0.5).sigmoid().double()

    def soft(text: int, head: int, token: int, seen: int) -> float:
        return math.log(1 - float(alpha[text, head, seen])) if token - seen > 2 else 0.0

    def hard(text: int, head: int, token: int, seen: int) -> float | None:
        return None if token - seen > 2 and float(logits[text, seen, head]) > 0 else 0.0

    rule.hear(x)
    torch.testing.assert_close(rule.attend(q, k, v), slow_attention(q, k, v, soft), atol=1e-5, rtol=1e-5)
    rule.target.fill_(0.7)
    expected = sum(max(0.7 - float(alpha[text].mean()), 0.0) for text in range(2)) / 2
    assert 0 < float(rule.told()["loss.eviction"].detach()) == pytest.approx(expected, abs=1e-5)
    with torch.no_grad():
        rule.hear(x)
        whole = rule.attend(q, k, v)
        torch.testing.assert_close(whole, slow_attention(q, k, v, hard), atol=1e-5, rtol=1e-5)
        for sizes in ([13], [1] * 13, [5, 1, 4, 3]):
            found, layer = in_passes(rule, q, k, v, x, sizes)
            torch.testing.assert_close(found, whole[:1], atol=1e-6, rtol=1e-6)
            # what the next token would not see is not there
            there = [[at for at in range(13) if hard(0, head, 13, at) is not None] for head in range(2)]
            assert [places.tolist() for places in layer.positions] == there
            assert sum(one.shape[0] for one in layer.keys) == sum(map(len, there)) < 26


def test_the_loss_of_eviction_is_one_sided_and_of_all_layers_together() -> None:
    shares, target = EvictedShares(3), torch.tensor(0.5)
    parts = [torch.tensor(values, requires_grad=True) for values in ([0.2, 0.9], [0.1, 0.6], [0.6, 0.3])]
    shares.of = dict(enumerate(parts))
    total = sum(shares.loss(layer, target) for layer in range(3))
    assert isinstance(total, Tensor)
    assert float(total.detach()) == pytest.approx((0.5 - 0.9 / 3) / 2)  # the second text evicts more than is asked for
    total.backward()
    for part in parts:
        torch.testing.assert_close(part.grad, torch.tensor([-1 / 6, 0.0]))
    assert not copy.deepcopy(shares).of


@pytest.mark.parametrize("kind", ["native", "gemma"])
def test_layers_that_are_computed_again_have_the_same_gradients(kind: str) -> None:
    found = []
    for again in (False, True):
        made, one = edited(MODELS[kind](), "dms", delay=3, offset=0.5, temperature=1.0, scale=1.0)
        one.after_step(made, At(progress=0.9))  # type: ignore[attr-defined]
        if again:
            checkpoint_layers(made.anatomy())
        reading = made.read(Inputs(torch.tensor([TEXT[:12], TEXT[12:24]])))
        auxiliary = reading.auxiliary()
        assert auxiliary is not None
        assert 0 < float(auxiliary.detach()) < 1
        (reading.logits().logsumexp(-1).mean() + 5 * auxiliary).backward()
        found.append([rule.gate.grad for rule in rules(made)])
    for plain, second in zip(*found, strict=True):
        assert float(plain.abs().sum()) > 0
        torch.testing.assert_close(plain, second)


@pytest.mark.parametrize(
    ("window", "sinks", "block", "stride"), [(4, 2, 1, 0), (3, 1, 2, 3), (20, 0, 2, 2), (1, 0, 1, 1)]
)
def test_parts_of_the_context_are_those_of_the_formula(window: int, sinks: int, block: int, stride: int) -> None:
    q, k, v, x = sample()
    rule = PartialContext(window=window, sinks=sinks, block=block, stride=stride)
    documents = torch.tensor([[0] * 7 + [1] * 6, [0] * 13])
    visible = (documents[:, :, None] == documents[:, None])[:, None]

    def there(head: int, token: int, at: int) -> bool:
        return token - at < window or at < sinks or (stride > 0 and at // block % stride == head % stride)

    def seen(text: int, head: int, token: int, at: int) -> float | None:
        return 0.0 if there(head, token, at) and documents[text, token] == documents[text, at] else None

    torch.testing.assert_close(rule.attend(q, k, v, visible=visible), slow_attention(q, k, v, seen))
    documents[0] = 0
    whole = slow_attention(q, k, v, seen)
    torch.testing.assert_close(rule.attend(q, k, v), whole)
    for sizes in ([13], [1] * 13, [5, 1, 4, 3]):
        found, layer = in_passes(rule, q, k, v, x, sizes)
        torch.testing.assert_close(found, whole[:1])
        assert [one.tolist() for one in layer.positions] == [
            [at for at in range(13) if there(head, 13, at)] for head in range(2)
        ]


@pytest.mark.parametrize("kind", ["native", "gemma"])
def test_chunks_have_the_distances_of_the_formula(kind: str) -> None:
    plain = MODELS[kind]()
    anatomy: Any = plain.anatomy()
    turn = anatomy.turn()
    rule = DualChunk(turn, trained=8, chunk=6, local=2)  # so that s = 4
    q, k, v, x = (one.float() for one in sample())

    def turned(vector: Tensor, position: int) -> Tensor:
        """By angles of the frequencies 10000^(-2i/8), worked out anew."""
        made = vector.clone()
        for i in range(4):
            angle = position * 10000 ** (-2 * i / 8)
            made[i] = vector[i] * math.cos(angle) - vector[i + 4] * math.sin(angle)
            made[i + 4] = vector[i + 4] * math.cos(angle) + vector[i] * math.sin(angle)
        return made

    def position(token: int, seen: int) -> int:
        apart = token // 4 - seen // 4
        return token % 4 if apart == 0 else min(token % 4 + 4, 5) if apart == 1 else 5

    asked, held = q.clone(), k.clone()  # as the layer gives them: turned by where they stand
    expected = torch.zeros_like(q)
    for text in range(2):
        for token in range(13):
            for head in range(2):
                held[text, head, token] = turned(k[text, head, token], token)
            for head in range(4):
                asked[text, head, token] = turned(q[text, head, token], token)
                scores = [
                    float(
                        turned(q[text, head, token], position(token, seen)) @ turned(k[text, head // 2, seen], seen % 4)
                    )
                    for seen in range(token + 1)
                ]
                warmth = (0.1 * math.log(max((token + 1) / 8, 1)) + 1) ** 2 / math.sqrt(8)
                weights = torch.tensor(scores).mul(warmth).softmax(0)
                expected[text, head, token] = weights @ v[text, head // 2, : token + 1]
    whole = rule.attend(asked, held, v)
    torch.testing.assert_close(whole, expected, atol=1e-4, rtol=1e-4)
    for sizes in ([13], [1] * 13, [5, 1, 4, 3]):
        found, _ = in_passes(rule, asked, held, v, x, sizes)
        torch.testing.assert_close(found, whole[:1], atol=1e-5, rtol=1e-5)
    # short texts are read as before, and longer ones than before can be
    made, _ = edited(copy.deepcopy(plain), "dual_chunk", chunk=32, local=8)
    short, long = Inputs(torch.tensor([TEXT[:24]])), Inputs(torch.tensor([TEXT * 5]))
    with torch.no_grad():
        torch.testing.assert_close(made.read(short).logits(), plain.read(short).logits(), atol=1e-4, rtol=1e-4)
        assert made.read(long).logits().isfinite().all()
    made.requires_grad_(False)
    engine = Engine(made, rows=1, room=200, tokens=9)
    engine.submit(Request(TEXT * 3, Sampling(temperature=0), 4))
    assert [list(answer.tokens) for answer in engine.run()] == [one_by_one(made, TEXT * 3, 4)]
    with pytest.raises(UsageError, match="do not fit"):
        plain.read(long)


def test_what_beacons_and_tokens_see_and_where_they_stand() -> None:
    now = whole_text(11, 4, [2, 4], torch.device("cpu"))
    # windows of 4, 4 and 3 tokens; the first two have 2 and 1 beacons
    kinds = "ttttbbttttbttt"
    assert now.beacons.tolist() == [kind == "b" for kind in kinds]
    assert now.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 2, 3, 4, 5]
    assert now.shift.tolist() == [4 * (kind == "b") for kind in kinds]
    sees = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 2, 3, 4, 5]]
    sees += [[4, 5, *range(6, last)] for last in range(7, 11)] + [[4, 5, 6, 7, 8, 9, 10]]
    sees += [[4, 5, 10, *range(11, last)] for last in range(12, 15)]
    assert [row.nonzero()[:, 0].tolist() for row in now.visible] == sees


@pytest.mark.parametrize("kind", ["native", "gemma"])
def test_beacons_take_the_place_of_their_windows(kind: str) -> None:
    plain = MODELS[kind]()
    made, one = edited(copy.deepcopy(plain), "activation_beacon", window=6, ratio=3, ratios=(2, 3), context=120)
    with torch.no_grad():  # short texts are as before, whatever beacons are
        for name, weight in made.named_parameters():
            if name.endswith(("delta", "beacon")):
                weight.normal_(std=0.5)
        short = Inputs(torch.tensor([TEXT[:6]]))
        torch.testing.assert_close(made.read(short).logits(), plain.read(short).logits(), atol=1e-5, rtol=1e-5)
        # token after token, with a cache, a text of a hundred tokens is what it is as a whole
        text = torch.tensor([TEXT * 4])
        whole = made.read(Inputs(text)).logits()
        for size in (1, 7, 104):
            cache = made.new_cache(1, 120)
            found = [made.read(Inputs(part), cache).logits() for part in text.split(size, 1)]
            torch.testing.assert_close(torch.cat(found, 1), whole, atol=1e-4, rtol=1e-4)
        # of 17 windows that are over there are 2 beacons each, and 2 tokens of the last
        assert [layer.keys.shape[2] for layer in cache.layers] == [17 * 2 + 2] * 2
    # in training ratios are mixed, alone beacons are trained, and they learn from later windows
    seen = set()
    state: Any = made.beacons
    for step in range(4):
        one.after_step(made, At(step=step))  # type: ignore[attr-defined]
        seen |= set(state.chosen(3))
    assert seen == {2, 3}
    assert {n.rpartition(".")[2] for n, p in made.named_parameters() if p.requires_grad} == {"delta", "beacon"}
    made.read(Inputs(text[:, :20])).logits()[:, -1].logsumexp(-1).sum().backward()
    silent = [n for n, p in made.named_parameters() if p.grad is not None and not float(p.grad.abs().sum())]
    assert len(silent) <= 1  # what beacons ask in the last layer is heard by nobody
    made.requires_grad_(False)
    engine = Engine(made, rows=2, room=200, tokens=9)
    engine.submit(Request(TEXT * 3, Sampling(temperature=0), 4, samples=2))
    assert [list(answer.tokens) for answer in engine.run()] == [one_by_one(made, TEXT * 3, 4)] * 2
    with pytest.raises(UsageError, match="one text a row"):
        made.read(Inputs(text, documents=torch.zeros_like(text)))


def test_the_target_of_eviction_grows_with_the_budget() -> None:
    made, one = edited(native(), "dms", ratio=4.0, ramp=0.5)
    seen = []
    for step, progress in enumerate((0.0, 0.25, 0.5, 1.0)):
        one.after_step(made, At(step=step, progress=progress))  # type: ignore[attr-defined]
        seen.append([float(rule.target) for rule in rules(made)])
        assert [int(rule.step) for rule in rules(made)] == [step + 1] * 2
    assert seen == [[pytest.approx(1 - 1 / ratio)] * 2 for ratio in (1, 2.5, 4, 4)]


EDITED: dict[str, dict[str, Any]] = {
    "dms": {"delay": 3, "offset": 0.5, "scale": 1.0},
    "longgen": {"full": 0.5, "window": 5, "sinks": 2},
    "longgen, in blocks": {"full": 0.0, "window": 3, "sinks": 1, "block": 2, "stride": 3},
}
"""Those whose caches hold less than all keys and values."""


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", EDITED)
def test_an_engine_writes_what_the_whole_text_says_and_holds_less(name: str, kind: str) -> None:
    made, _ = edited(MODELS[kind](), name.split(",")[0], **EDITED[name])
    made.requires_grad_(False)
    expected = one_by_one(made, TEXT, COUNT)

    for tokens, drafter in ((5, None), (64, Choice.of("decode", "ngram", kind="drafter").build())):
        engine = Engine(made, rows=2, room=200, tokens=tokens, drafter=drafter)
        engine.submit(Request(TEXT, Sampling(temperature=0), COUNT, samples=2))
        assert [list(answer.tokens) for answer in engine.run()] == [expected] * 2
    with torch.no_grad():
        one = made.new_cache(1, len(TEXT))
        made.read(Inputs(torch.tensor([TEXT])), one)
        plain = MODELS[kind]().new_cache(1, len(TEXT))
        assert sum(layer.nbytes for layer in one.layers) < 0.95 * plain.nbytes
    with pytest.raises(UsageError, match="one text at a time"):
        made.new_cache(2, 60)
