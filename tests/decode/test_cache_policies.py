"""Policies of what a cache keeps: each through the same table."""

import pytest
import torch

from shoestring.contract.model import LanguageModel
from shoestring.decode import Engine, Request
from shoestring.decode.row import Row
from shoestring.decode.store import PagedStore
from shoestring.decode.work import RowWork
from shoestring.errors import UsageError
from tests.decode.cached_texts import (
    COUNT,
    GREEDY,
    MODELS,
    MOST,
    POLICIES,
    STORES,
    STRIDE,
    TEXTS,
    paged,
    places,
    written,
)
from tests.decode.masked_reference import SLOW, read_masked
from tests.decode.random_models import native, one_by_one


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return MODELS[request.param]()


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


def test_drafts_are_for_policies_that_look_at_keys_alone() -> None:
    from shoestring.decode.drafters.ngram import NGram

    model = native()
    expected = written(Engine(model, store=paged(model, "keydiff"), rows=3))
    engine = Engine(model, store=paged(model, "keydiff"), rows=3, drafter=NGram())
    assert written(engine) == expected
    assert engine.drafted > 0
    with pytest.raises(UsageError, match="leave the drafter out"):
        Engine(model, store=paged(model, "h2o"), rows=3, drafter=NGram())
