"""Texts that a model writes itself come in order with their cost, make a corpus, and a draft of them is judged."""

import json
from pathlib import Path

import pytest

from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.drafters.draft_model import DraftModel
from shoestring.decode.own_texts import draft_report, own_texts, save_texts
from shoestring.errors import UsageError
from tests.decode.random_models import native, one_by_one, prompts

GREEDY = Sampling(temperature=0)


def test_texts_come_in_the_order_of_their_prompts() -> None:
    model, asked = native(), prompts(7)
    engine = Engine(model, rows=3)
    engine.submit(Request((1, 2), GREEDY, 3))  # of somebody else
    got = list(own_texts(engine, asked, 10, GREEDY))
    assert [text.prompt for text in got] == asked
    assert [list(text.answer) for text in got] == [one_by_one(model, text, 10) for text in asked]
    assert all(text.charge.written == 10 for text in got)
    several = list(own_texts(engine, asked[:2], 6, Sampling(temperature=1.5), samples=3))
    assert [text.prompt for text in several] == [asked[0]] * 3 + [asked[1]] * 3
    assert len({text.answer for text in several}) == 6


def test_they_make_a_corpus(tmp_path: Path) -> None:
    engine = Engine(native(), rows=3)
    path = tmp_path / "texts.jsonl"
    count, charge = save_texts(path, own_texts(engine, prompts(4), 5, GREEDY), lambda ids: " ".join(map(str, ids)))
    lines = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    assert (count, charge.written) == (4, 20)
    expected = [(*text, *one_by_one(native(), text, 5)) for text in prompts(4)]
    assert [tuple(map(int, line.split())) for line in lines] == expected
    with pytest.raises(UsageError, match="no text to align a draft with"):
        save_texts(path, [], str)


def test_a_draft_is_judged_by_what_stays() -> None:
    model = native()
    same = draft_report(Engine(model, drafter=DraftModel(model, model, most=4, confidence=0)), prompts(3), 16, GREEDY)
    # a pass for the prompt and its first token, then three of five tokens: 1 + 5 + 5 + 5
    assert (same.rate, same.block) == (1.0, 4.0)
    assert 0.5 < same.flops < 1
    other = draft_report(
        Engine(model, drafter=DraftModel(native(seed=9), model, most=4, confidence=0)), prompts(3), 16, GREEDY
    )
    assert other.rate < 0.3
    assert 1 <= other.block < same.block
    with pytest.raises(UsageError, match="nothing to judge a draft by"):
        draft_report(Engine(model), [], 4)
