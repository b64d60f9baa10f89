"""A draft model that sees a window: what it sees, what it keeps, and that nothing of the text changes."""

import pytest

from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.drafters.longspec import LongSpec
from shoestring.errors import UsageError
from tests.decode.random_models import VOCABULARY, native, noisy, one_by_one, prompts
from tests.decode.test_draft_model import row_of

GREEDY = Sampling(temperature=0)


def seen(tokens: list[int], skipped: int, window: int, anchors: int) -> tuple[list[int], int]:
    """The definition: (what the draft model sees, tokens left out), of what was left out before."""
    if len(tokens) - skipped > anchors + 2 * window:
        skipped = len(tokens) - anchors - window
    return tokens[:anchors] + tokens[anchors + skipped :], skipped


@pytest.mark.parametrize(("window", "anchors"), [(6, 2), (9, 0), (5, 4)])
def test_it_sees_the_beginning_and_the_last_tokens_and_keeps_no_more(window: int, anchors: int) -> None:
    model = native(context=256)
    drafter = LongSpec(model, model, most=3, confidence=0, window=window, anchors=anchors, room=200)
    text, skipped = [number * 7 % VOCABULARY for number in range(11)], 0
    row = row_of(1, text)
    while len(row.tokens) < 120:
        view, skipped = seen(row.tokens, skipped, window, anchors)
        (draft,) = drafter.propose([row], [3])
        assert list(draft.tokens) == one_by_one(model, tuple(view), 3)
        assert drafter.state.store.cache.held[1] <= anchors + 2 * window + 3
        drafter.state.store.check()
        row.tokens += [*draft.tokens[: len(row.tokens) % 4], len(row.tokens) % VOCABULARY]
    # each token is read about twice, and each draft once
    assert drafter.spent().read < 4.5 * len(row.tokens)
    drafter.drop(row)
    assert drafter.state.store.free == drafter.state.store.capacity


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.3, seed=5)])
def test_long_texts_are_those_of_the_model(sampling: Sampling) -> None:
    """Longer than the draft model's context; its draws are those of the places of the whole text."""
    model, draft = native(context=128), noisy(native(context=40), 0.01)
    texts = [text * 3 for text in prompts(3, seed=1)]
    drafter = LongSpec(draft, model, most=4, confidence=0, window=14, anchors=2)
    engine = Engine(model, rows=3, drafter=drafter)
    requests = [Request(text, sampling, 40, samples=2) for text in texts]
    got = {(each.number, each.sample): each.tokens for each in engine.run(requests)}
    plain = {(each.number, each.sample): each.tokens for each in Engine(model, rows=3).run(requests)}
    assert got == plain
    assert engine.accepted > 20
    assert drafter.state.store.free == drafter.state.store.capacity


def test_a_window_that_does_not_fit_is_refused() -> None:
    model = native(context=64)
    with pytest.raises(UsageError, match="do not fit in the draft model's context of 64: set a smaller window"):
        LongSpec(model, model, window=40)
