"""Caches that hold less: every policy and every store through the same table."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import shoestring
from shoestring import kernels
from shoestring.config import Choice, build
from shoestring.contract.cache import KeptShape
from shoestring.contract.model import LanguageModel
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.cache_budget import CacheConfig
from shoestring.decode.cache_policy import CachePolicy
from shoestring.decode.cache_store import CacheStore, Side, place_bytes
from shoestring.decode.cache_stores.int8 import Int8Store
from shoestring.decode.cache_stores.lighttransfer import StreamingLayer
from shoestring.decode.cache_stores.minicache import Stretch
from shoestring.decode.cache_stores.shadowkv import ShadowLayer
from shoestring.decode.cache_stores.sparse_prefill import SparseLayer
from shoestring.decode.eviction import Limit
from shoestring.decode.row import Row
from shoestring.decode.separate_store import SeparateStore
from shoestring.decode.store import PagedStore
from shoestring.decode.text_cache import TextStore
from shoestring.decode.work import RowWork
from shoestring.errors import UsageError
from shoestring.method import methods
from shoestring.model import ModelConfig, Transformer
from shoestring.model.wrapped import Wrapped
from tests.decode.masked_reference import SLOW, read_masked
from tests.decode.random_models import CONTEXT, VOCABULARY, native, one_by_one, prompts, wrapped

GREEDY = Sampling(temperature=0)
MODELS: dict[str, Callable[[], LanguageModel]] = {
    "native": native,
    "gpt2": lambda: wrapped("gpt2"),
    "windows": lambda: wrapped("mistral", sliding_window=12),
}
POLICIES = [card.name for card in methods("decode", "cache policy")]
EVERY = [card.name for card in methods("decode", "cache store")]
WHOLE = [name for name in EVERY if isinstance(Choice.of("decode", name, kind="cache store").build(), TextStore)]
STORES = [name for name in EVERY if name not in WHOLE]
TEXT_STORES = [name for name in WHOLE if name not in ("lazyllm", "length_adaptive")]
"""But for those of native models, which are in files of their own."""
TEXTS = [
    tuple((3 * place * place + 5 * number) % VOCABULARY for place in range(21 + 4 * number)) for number in range(3)
]
MOST, STRIDE, COUNT = 16, 4, 12


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return MODELS[request.param]()


def policy(name: str) -> CachePolicy:
    options = SLOW[name][0] if name in SLOW else {}
    made: CachePolicy = Choice.of("decode", name, kind="cache policy", **options).build()
    return made


def held_store(name: str) -> CacheStore:
    made: CacheStore = Choice.of("decode", name, kind="cache store").build()
    return made


def paged(
    model: LanguageModel, name: str, blocks: int = 40, whole: bool = False, store: str = "plain", most: int = MOST
) -> PagedStore:
    limit = Limit(most, STRIDE, whole)
    return PagedStore(model, blocks, 4, policy=policy(name), limit=lambda row: limit, store=held_store(store))


def written(engine: Engine, texts: list[tuple[int, ...]] = TEXTS, count: int = COUNT, **more: Any) -> list[list[int]]:
    numbers = [engine.submit(Request(text, GREEDY, count, **more)) for text in texts]
    found = {(each.number, each.sample): list(each.tokens) for each in engine.run()}
    return [found[number, sample] for number in numbers for sample in range(more.get("samples", 1))]


def places(store: PagedStore, number: int) -> list[list[list[int]]]:
    """Of each layer and head, the tokens that a row holds."""
    slots = store.cache._slots(number, store.cache.held[number])
    return [layer.positions[slots].T.tolist() for layer in store.cache.layers]


@pytest.mark.parametrize(("name", "width"), [("int8", 48), ("int4", 128)])
def test_the_native_pass_writes_codes_as_the_store_makes_them(name: str, width: int) -> None:
    torch.manual_seed(0)
    sizes = {"layers": 1, "width": width, "heads": 4, "vocabulary": 64, "context": 64, "key_value_heads": 2}
    model = Transformer(build(ModelConfig, sizes)).requires_grad_(False).eval()
    text, sides = tuple(range(30)), list[torch.Tensor]()
    with torch.no_grad():
        model.embedding.weight[3:6] *= 1e-4  # codes of what is hardly there
    for kind in ("plain", name):
        store = PagedStore(model, 40, 4, store=held_store(kind))
        engine = Engine(model, store=store, rows=1, tokens=7)
        engine.submit(Request(text, GREEDY, 2))
        while engine.passes < 3:
            engine.step()
        layer, slots = store.cache.layers[0], store.cache._slots(1, 21)
        sides += [side.codes[0][slots] for side in (layer.key_side, layer.value_side)]
    for plain, codes in zip(sides[:2], sides[2:], strict=True):
        assert torch.equal(held_store(name).encode(plain)[0], codes)


@pytest.mark.skipif(kernels.kernel_in_use() == kernels.TORCH, reason="the native library was not built")
@pytest.mark.parametrize("made", [native, lambda: wrapped("mistral")], ids=["native", "wrapped"])
def test_codes_are_read_where_they_are(made: Callable[[], LanguageModel], monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> torch.Tensor:
        raise AssertionError("codes were decoded")

    monkeypatch.setattr(Int8Store, "decode", decode)
    model = made()
    engine = Engine(model, store=PagedStore(model, 40, 4, store=held_store("int8")), rows=2, tokens=7)
    assert all(map(len, written(engine, TEXTS[:2])))


@pytest.mark.parametrize("name", SLOW)
def test_kept_tokens_and_text_are_those_of_a_slow_reference(model: LanguageModel, name: str) -> None:
    compare_with_reference(model, name, whole=False)


@pytest.mark.parametrize("name", SLOW)
def test_prompts_that_are_read_whole_are_cut_as_a_slow_reference_does(name: str) -> None:
    compare_with_reference(native(), name, whole=True)


def compare_with_reference(model: LanguageModel, name: str, *, whole: bool) -> None:
    expected, there = read_masked(model, TEXTS[1], COUNT, SLOW[name][1], MOST, STRIDE, whole)
    store = paged(model, name, whole=whole)
    engine = Engine(model, store=store, rows=2, tokens=7 if not whole else 64)
    assert written(engine, TEXTS[1:2]) == [expected]
    # and once more up to the last token that is read, to look at what is held then
    row = Row(99, 99, Request((*TEXTS[1], *expected[:-1]), GREEDY, 1), 0, [*TEXTS[1], *expected[:-1]], 0.0)
    if not whole:
        row.held = engine.store.admit(row)
        with torch.inference_mode():
            while row.unread:
                count = store.allowed(row, min(5, row.unread))
                store.extend(row, row.held + count)
                store.read(model, [RowWork(row, row.tokens[row.held : row.held + count])])
                row.held += count
                store.keep(row, row.held - count, range(count))
        assert places(store, 99) == there
        store.drop(row)
    store.check()
    assert store.free == store.capacity


def test_every_policy_has_a_slow_reference() -> None:
    assert set(POLICIES) == {*SLOW, "random"}


# each policy with keys and values as they are, and each store with a policy that looks at keys alone
TABLE = [*((name, "plain") for name in POLICIES), *(("keydiff", store) for store in STORES if store != "plain")]


@pytest.mark.parametrize(("name", "store"), TABLE)
def test_texts_do_not_depend_on_company_passes_or_preemption(name: str, store: str) -> None:
    model = native()
    alone = [
        written(Engine(model, store=paged(model, name, store=store), rows=1, tokens=5), [text])[0] for text in TEXTS
    ]
    assert alone != [one_by_one(model, text, COUNT) for text in TEXTS]  # something was lost
    together = paged(model, name, store=store)
    assert written(Engine(model, store=together, rows=3, tokens=24)) == alone
    assert together.evicted > 0
    assert together.free == together.capacity
    narrow = paged(model, name, 9, store=store)  # room for two rows and a bit
    engine = Engine(model, store=narrow, rows=3, tokens=8)
    assert written(engine) == alone
    narrow.check()
    # forks go their own ways from where one is
    forked = paged(model, name, 9, store=store)
    assert written(Engine(model, store=forked, rows=4, tokens=8), TEXTS[:1], samples=3) == alone[:1] * 3
    forked.check()


@pytest.mark.parametrize("name", POLICIES)
def test_prefix_sharing_stays_right(name: str) -> None:
    model = native()
    store = paged(model, name)
    engine = Engine(model, store=store, rows=2)
    first = written(engine, [TEXTS[2]])[0]
    again = next(iter(engine.run([Request(TEXTS[2], GREEDY, COUNT)])))
    assert list(again.tokens) == first
    reused = again.spent.charge.reused
    assert reused == (0 if store.eviction is None or store.eviction.watches else MOST)
    # beside it: both hold the same blocks, until one has to give up some
    both = written(engine, [TEXTS[2], TEXTS[2]])
    assert both == [first, first]
    store.check()
    # what was shared is as it was read
    plain = Engine(model, store=PagedStore(model, 40, 4), rows=1)
    assert written(plain, [TEXTS[2][:MOST]]) == written(
        Engine(model, store=paged(model, name, most=60), rows=1), [TEXTS[2][:MOST]]
    )


@pytest.mark.parametrize("store", STORES)
def test_a_store_reads_what_was_written(store: str) -> None:
    torch.manual_seed(0)
    held = held_store(store)
    x = torch.randn(30, 2, 8) * torch.logspace(-2, 2, 30)[:, None, None]
    x[3] = 0
    side = Side(held, 40, 2, 8, x)
    at = torch.randperm(40)[:30]
    side.write(at, x)
    error = (side.read(at) - x).abs().amax(-1)
    bound = {"int8": 0.51 / 127, "int4": 0.51 / 7.5}.get(store, 0.0) * x.abs().amax(-1) + (0 if held.exact else 1e-3)
    assert (error <= bound).all()
    assert held.exact == bool((error == 0).all())
    before = side.read(at)
    side.copy(torch.stack((at[:9], at[9:18])), at[20:29])  # each head from places of its own
    assert torch.equal(side.read(at[20:29]), torch.stack((before[:9, 0], before[9:18, 1]), 1))
    whole = sum(code.nbytes for code in side.codes)
    assert side.nbytes + side.elsewhere == whole
    assert whole <= x.element_size() * 40 * 16
    if not held.exact:
        assert whole < x.element_size() * 40 * 16 / 2


@pytest.mark.parametrize("store", STORES)
def test_texts_of_a_store_are_those_of_any_passes(model: LanguageModel, store: str) -> None:
    def engine(rows: int, tokens: int) -> Engine:
        return Engine(model, store=PagedStore(model, 60, 4, store=held_store(store)), rows=rows, tokens=tokens)

    alone = [written(engine(1, 5), [text])[0] for text in TEXTS]
    assert written(engine(3, 64)) == alone
    if held_store(store).exact:
        assert alone == [one_by_one(model, text, COUNT) for text in TEXTS]


HOLDING: dict[str, dict[str, Any]] = {
    "minicache": {"start": 0.0, "stride": 4, "retained": 0.2},
    "lighttransfer": {"share": 0.5, "sinks": 2, "latest": 6, "observed": 4},
    "sparse_prefill": {"piece": 6, "observed": 3, "share": 0.3},
    "shadowkv": {"rank": 6, "chunk": 2, "chosen": 6, "outliers": 1},
}


@pytest.mark.parametrize("name", TEXT_STORES)
def test_a_text_that_is_held_otherwise_depends_on_itself_alone(model: LanguageModel, name: str) -> None:
    made: TextStore = Choice.of("decode", name, kind="cache store", **HOLDING[name]).build()
    if isinstance(model, Wrapped) and model.config.model_type == "mistral":
        if name != "minicache":
            return  # they attend themselves, as on the other models
        with pytest.raises(UsageError, match="they read with a plain cache"):
            written(Engine(model, store=SeparateStore(model, 200, 1, store=made), rows=1), TEXTS[:1])
        return

    def engine(rows: int, tokens: int, room: int = 200) -> Engine:
        return Engine(model, store=SeparateStore(model, room, rows, store=made), rows=rows, tokens=tokens)

    alone = [written(engine(1, 5), [text])[0] for text in TEXTS]
    assert alone != [one_by_one(model, text, COUNT) for text in TEXTS]
    assert written(engine(3, 64)) == alone
    assert written(engine(3, 8, 90)) == alone  # where not all have room at once
    assert written(engine(2, 8), TEXTS[:1], samples=2) == alone[:1] * 2
    # bytes are fewer for real
    last = engine(1, 64)
    last.submit(Request(TEXTS[2], GREEDY, COUNT))
    while all(event.stop is None for event in last.step()):
        held = last.store.nbytes
    read = len(TEXTS[2]) + COUNT - 2
    each = 2 * 2 * model.new_cache(1, 1).layers[0].keys.nbytes
    assert held < {"minicache": 0.9, "shadowkv": 0.75, "lighttransfer": 0.8, "sparse_prefill": 1.2}[name] * read * each


def test_lazy_layers_are_the_ones_that_look_at_ends_and_see_no_more_than_these() -> None:
    model, window = native(), SLOW["window"][1]
    made = Choice.of("decode", "lighttransfer", kind="cache store", share=1.0, sinks=4, latest=8, observed=3).build()
    store = SeparateStore(model, 300, 1, store=made)
    expected, _ = read_masked(model, TEXTS[1], COUNT, window, 13, 1, whole=True)
    assert written(Engine(model, store=store, rows=1), TEXTS[1:2]) == [expected]
    layer = StreamingLayer(2, 3, 4)
    torch.manual_seed(0)
    queries, keys = torch.randn(1, 4, 12, 8), torch.randn(1, 2, 12, 8)
    layer.attend(queries, keys, keys)
    total = 0.0
    for head in range(4):
        for token in range(8, 12):
            weights = (keys[0, head // 2, : token + 1] @ queries[0, head, token] / 8**0.5).softmax(0).tolist()
            total += sum(w for at, w in enumerate(weights) if at < 2 or token - at <= 3) / 16
    assert layer.laziness() == pytest.approx(total, abs=1e-5)


def test_merged_vectors_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 9, 4)
    stretch = Stretch(x, y, 0.6, 2)
    for head in range(3):
        for token in range(9):
            u, v = x[head, token] / x[head, token].norm(), y[head, token] / y[head, token].norm()
            angle = math.acos(float(u @ v))
            e = (math.sin(0.4 * angle) * u + math.sin(0.6 * angle) * v) / math.sin(angle)
            for which, z in enumerate((x, y)):
                expected = z[head, token] if token in stretch.apart else e * z[head, token].norm()
                torch.testing.assert_close(stretch.read(which)[head, token], expected)
    angles = [sum(float(torch.cosine_similarity(x[h, t], y[h, t], dim=0).arccos()) for h in range(3)) for t in range(9)]
    assert stretch.apart.tolist() == sorted(sorted(range(9), key=lambda t: -angles[t])[:2])


def test_low_rank_keys_that_choose_all_attend_as_the_whole_cache_does() -> None:
    model = native()
    expected = [one_by_one(model, text, COUNT) for text in TEXTS]
    # all but one chunk is read, and of full rank: what is left out is the chunk that is liked least
    made = Choice.of("decode", "shadowkv", kind="cache store", rank=64, chunk=1, chosen=19, outliers=1).build()
    assert (
        written(Engine(model, store=SeparateStore(model, 300, 3, store=made), rows=3), TEXTS[:1])[0][0]
        == expected[0][0]
    )
    layer = ShadowLayer(made, (model.rotary.cos, model.rotary.sin))
    torch.manual_seed(0)
    queries, keys, values = torch.randn(1, 4, 25, 8), torch.randn(1, 2, 25, 8), torch.randn(1, 2, 25, 8)
    layer.attend(queries, keys, values)
    layer.settle()
    near, far = layer._chosen(torch.randn(1, 4, 1, 8))
    for head in range(2):
        found = [int((values[0, head] - one).abs().sum(-1).argmin()) for one in far[0, head]]
        assert len(set(found)) == 20
        torch.testing.assert_close(near[0, head], keys[0, head, found], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(far[0, head], values[0, head, found])


def test_pieces_of_a_prompt_see_what_mattered_to_the_piece_before() -> None:
    torch.manual_seed(0)
    queries, keys, values = torch.randn(1, 4, 12, 8) * 2, torch.randn(1, 2, 12, 8), torch.randn(1, 2, 12, 8)
    layer = SparseLayer(0.6, 2)
    layer.attend(queries[:, :, :6], keys[:, :, :6], values[:, :, :6])
    layer.choose()
    before = layer.scored
    found = torch.cat([layer.attend(*(one[:, :, at : at + 3] for one in (queries, keys, values))) for at in (6, 9)], 2)
    patterns = []
    for head in range(4):
        weights = []
        for token in (4, 5):  # those that are observed
            scores = keys[0, head // 2, : token + 1] @ queries[0, head, token] / 8**0.5
            weights.append([*scores.softmax(0).tolist(), *[0.0] * (5 - token)])
        columns = sorted(range(6), key=lambda j: -(weights[0][j] + weights[1][j]))
        slants = sorted(range(6), key=lambda d: -sum(w[t - d] for t, w in zip((4, 5), weights, strict=True) if t >= d))
        count = 1
        while True:
            chosen = columns[:count], slants[:count]
            kept = sum(
                w[j] / 2
                for t, w in zip((4, 5), weights, strict=True)
                for j in range(t + 1)
                if j in chosen[0] or t - j in chosen[1]
            )
            if kept >= 0.6 or count >= 6:
                break
            count *= 2
        patterns.append(chosen)
        for token in range(6, 12):
            seen = [j for j in range(token + 1) if j >= 6 or j in chosen[0] or token - j in chosen[1]]
            mixed = (keys[0, head // 2, seen] @ queries[0, head, token] / 8**0.5).softmax(0) @ values[
                0, head // 2, seen
            ]
            torch.testing.assert_close(found[0, head, token - 6], mixed)
    assert len({len(columns) for columns, _ in patterns}) > 1  # each head has as many as it needs
    assert layer.scored - before < 4 * (3 * 9 + 3 * 12)
    # what keeps all of the attention is what all attention says
    whole, plain = SparseLayer(1.0, 2), SparseLayer(1.0, 2)
    for at in (0, 6):
        part = tuple(one[:, :, at : at + 6] for one in (queries, keys, values))
        torch.testing.assert_close(whole.attend(*part), plain.attend(*part))
        whole.choose()


def test_chunks_are_chosen_by_the_scores_of_attention_and_outliers_by_each_head() -> None:
    made = Choice.of("decode", "shadowkv", kind="cache store", rank=64, chunk=2, chosen=4, outliers=1).build()
    layer = ShadowLayer(made, None)
    torch.manual_seed(6)
    queries, keys, values = torch.randn(1, 4, 24, 8), torch.randn(1, 2, 24, 8), torch.randn(1, 2, 24, 8)
    layer.attend(queries, keys, values)
    layer.settle()
    asked = torch.randn(1, 4, 1, 8) * 3
    layer.attend(asked, torch.randn(1, 2, 1, 8), torch.randn(1, 2, 1, 8), scale=0.1)
    _, far = layer._chosen(asked)
    for head in range(2):
        means = [(keys[0, head, 2 * c] + keys[0, head, 2 * c + 1]) / 2 for c in range(12)]
        likeness = [
            min(float(torch.cosine_similarity(keys[0, head, 2 * c + i], means[c], dim=0)) for i in range(2))
            for c in range(12)
        ]
        outlier = likeness.index(min(likeness))
        looked = [0.0] * 12
        for query in asked[0, 2 * head : 2 * head + 2, 0]:
            weights = (torch.stack(means) @ query * 0.1).softmax(0).tolist()
            looked = [max(both) for both in zip(looked, weights, strict=True)]
        best = sorted((c for c in range(12) if c != outlier), key=lambda c: -looked[c])[:2]
        places = [2 * c + i for c in (*sorted(best), outlier) for i in range(2)]
        torch.testing.assert_close(far[0, head], values[0, head, places])
    with pytest.raises(UsageError, match="see a window"):
        layer.attend(asked, keys[:, :, :1], values[:, :, :1], window=4)


@pytest.mark.parametrize("name", POLICIES)
def test_a_budget_in_bytes_is_kept(name: str) -> None:
    model = native(context=256)
    config = CacheConfig("24KiB", Choice.of("decode", name, kind="cache policy"))
    if name == "snapkv":
        config = CacheConfig("24KiB", Choice.of("decode", name, kind="cache policy", observed=4))
    engine = Engine(model, rows=2, room=512, cache=config)
    for number in range(2):
        engine.submit(Request(tuple((number + 7 * place) % VOCABULARY for place in range(120)), GREEDY, 30))
    largest = 0
    while engine.busy:
        engine.step()
        largest = max(largest, engine.store.nbytes)
    assert 12 << 10 < largest <= 24 << 10
    assert not engine.store.notes()


def test_a_share_is_of_the_tokens_that_a_text_may_have() -> None:
    model = native(context=256)
    whole = Engine(model, rows=1, room=200)
    quarter = Engine(
        model, rows=1, room=200, cache=CacheConfig("25%", Choice.of("decode", "keydiff", kind="cache policy"))
    )
    text = tuple(7 * place % VOCABULARY for place in range(150))
    assert [len(written(engine, [text], 50)[0]) for engine in (quarter, whole)] == [50, 50]
    assert quarter.store.nbytes < 0.5 * whole.store.nbytes  # positions, and blocks that are not full
    assert not quarter.store.notes()
    short = Engine(
        model, rows=1, room=40, cache=CacheConfig("100%", Choice.of("decode", "keydiff", kind="cache policy"))
    )
    written(short, [text[:10]], 5)
    assert "evicted nothing" in short.store.notes()[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": "12"}, "has no unit"),
        ({"budget": "0%"}, "no share of the cache"),
        ({"policy": "keydiff"}, "keeps to a budget"),
        ({"whole": True}, "set policy"),
        ({"budget": "50%", "policy": "keydif"}, "did you mean"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    from shoestring.config import build

    with pytest.raises(UsageError, match=message):
        build(CacheConfig, given, lambda key: f"--cache.{key}")


def test_a_budget_that_is_too_small_says_what_would_do() -> None:
    model = native()
    with pytest.raises(UsageError, match=r"too small for 4 rows at a time: (\d+)KiB would do") as told:
        Engine(model, rows=4, cache=CacheConfig("2KiB", Choice.of("decode", "window", kind="cache policy")))
    least = str(told.value).split(": ")[1].split()[0]
    Engine(model, rows=4, cache=CacheConfig(least, Choice.of("decode", "window", kind="cache policy")))
    with pytest.raises(UsageError, match="holds not even 16 tokens"):
        Engine(model, rows=4, cache=CacheConfig("1KiB"))


def test_drafts_are_for_policies_that_look_at_keys_alone() -> None:
    from shoestring.decode.drafters.ngram import NGram

    model = native()
    expected = written(Engine(model, store=paged(model, "keydiff"), rows=3))
    engine = Engine(model, store=paged(model, "keydiff"), rows=3, drafter=NGram())
    assert written(engine) == expected
    assert engine.drafted > 0
    with pytest.raises(UsageError, match="leave the drafter out"):
        Engine(model, store=paged(model, "h2o"), rows=3, drafter=NGram())


def test_more_texts_than_context_would_hold_pass_through_a_small_cache() -> None:
    model = native()
    config = CacheConfig("25%", Choice.of("decode", "window", kind="cache policy"))
    engine = Engine(model, rows=4, room=4 * CONTEXT, cache=config)
    texts = [text * 2 for text in prompts(8, longest=12)]
    assert all(len(tokens) == 8 for tokens in written(engine, texts, 8))


def test_a_cache_of_transformers_holds_and_writes_what_the_engine_does() -> None:
    model = wrapped("gpt2", bos_token_id=0, eos_token_id=None)
    assert isinstance(model, Wrapped)
    longest = len(TEXTS[1])
    settings: dict[str, Any] = {"max_new_tokens": COUNT, "do_sample": False, "pad_token_id": 0}
    ids = torch.tensor([[0] * (longest - len(text)) + list(text) for text in TEXTS[:2]])
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in TEXTS[:2]])
    for name in POLICIES:
        options: dict[str, Any] = SLOW[name][0] if name in SLOW else {}
        engines = [Engine(model, store=paged(model, name, whole=True), rows=1, tokens=64) for _ in TEXTS[:2]]
        expected = [written(engine, [text])[0] for engine, text in zip(engines, TEXTS[:2], strict=True)]
        share = f"{100 * (MOST - STRIDE) / longest}%"
        held = shoestring.cache(model.stock, name, budget=share, stride=STRIDE, attention_mask=mask, **options)
        out = model.stock.generate(ids, attention_mask=mask, past_key_values=held, **settings)
        assert out[:, longest:].tolist() == expected, name
        assert all(MOST - STRIDE <= layer.held < MOST for layer in held.layers)
        whole = 2 * 2 * 2 * 32 * 4 * (longest + COUNT - 1)  # layers, rows, keys and values, width, float32
        assert held.nbytes < 0.55 * whole
        del held
    assert model.stock.config._attn_implementation == "sdpa"
    for name in ("plain", "int8", "int4"):
        engine = Engine(model, store=PagedStore(model, 60, 4, store=held_store(name)), rows=1)
        held = shoestring.cache(model.stock, store=name)
        out = model.stock.generate(ids[1:], attention_mask=mask[1:], past_key_values=held, **settings)
        assert out[:, longest:].tolist() == written(engine, TEXTS[1:2])
    with pytest.raises(UsageError, match="keeps keys and values in memory"):
        shoestring.cache(model.stock, store="disk")
    with pytest.raises(UsageError, match="use the engine"):
        shoestring.cache(wrapped("mistral").stock, "keydiff")


def test_what_does_not_fit_is_refused_before_it_is_read() -> None:
    model = native(context=256)
    keydiff = Choice.of("decode", "keydiff", kind="cache policy")
    # of a budget that is more than the room, the room counts
    wide = Engine(model, rows=1, room=64, cache=CacheConfig("1MiB", keydiff))
    assert wide.store.longest == wide.store.capacity < 100
    with pytest.raises(UsageError, match="this engine has room for"):
        wide.submit(Request(TEXTS[0] * 5, GREEDY, 4))
    narrow = Engine(model, rows=1, room=256, cache=CacheConfig("16KiB", keydiff))
    assert narrow.store.capacity < 200 < narrow.store.longest
    assert len(written(narrow, [(*TEXTS[2] * 7,)], 4)[0]) == 4
    # read whole, a prompt needs room for all of it
    whole = Engine(model, rows=1, room=256, cache=CacheConfig("16KiB", keydiff, whole=True))
    with pytest.raises(UsageError, match="this engine has room for"):
        whole.submit(Request(TEXTS[2] * 7, GREEDY, 4))


def test_bytes_of_a_token_are_those_of_the_page() -> None:
    shapes = [KeptShape(3, 64, 64)] * 30
    held = {name: sum(place_bytes(held_store(name), shapes, torch.zeros(1))) for name in ("plain", "int8", "int4")}
    page = (Path(__file__).parents[2] / "docs" / "caches.md").read_text()
    for name, each in held.items():
        assert re.search(rf"`{name}`[a-z0-9 ]* {(1 << 30) // each:,}[,.]", page), (name, each)
