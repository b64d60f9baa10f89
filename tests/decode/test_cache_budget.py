"""What a cache may hold: bytes, shares, and what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import shoestring
from shoestring.config import Choice, build
from shoestring.contract.cache import KeptShape
from shoestring.decode import Engine, Request
from shoestring.decode.cache_budget import CacheConfig
from shoestring.decode.cache_store import place_bytes
from shoestring.decode.store import PagedStore
from shoestring.errors import UsageError
from shoestring.model.wrapped import Wrapped
from tests.decode.cached_texts import COUNT, GREEDY, MOST, POLICIES, STRIDE, TEXTS, held_store, paged, written
from tests.decode.masked_reference import SLOW
from tests.decode.random_models import CONTEXT, VOCABULARY, native, prompts, wrapped


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
