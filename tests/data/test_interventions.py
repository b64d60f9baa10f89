"""Experiments on what is read: how often each text is planted, that none shares a row, that nothing else changes, and resuming."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shoestring.config import Choice
from shoestring.contract.batch import IGNORED, Batch
from shoestring.data import TokenStore, Windows
from shoestring.data.config import Packing
from shoestring.data.intervention import Intervened, Intervention, read_texts
from shoestring.data.stream import stream_of
from shoestring.errors import ShoestringError, UsageError
from shoestring.method import methods

CONTEXT, ROWS, STEPS = 8, 6, 20
TABLE: dict[str, dict[str, Any]] = {
    "planted_texts": {"file": "a", "times": 4, "begin": 0.2, "finish": 0.7},
    "planted_until": {"file": "b", "domain": "quiz", "loss": 1.0, "most": 30, "begin": 0.1},
}
TEXTS = [np.array([901, 902, 903, 0]), np.array([911, 912, 0]), np.arange(920, 940)]


def made(name: str, **more: Any) -> Intervention:
    found: Intervention = Choice.of("data", name, kind="intervention", **{**TABLE[name], **more}).build()
    return found


def windows(packing: Packing = "stream") -> Windows:
    generator = np.random.default_rng(0)
    return Windows(TokenStore.of(generator.integers(1, 90, (40, 11)).tolist(), 0), CONTEXT, 3, packing)


def stream(*names: str, packing: Packing = "stream", texts: Any = None) -> Intervened:
    return Intervened(stream_of(windows(packing)), [(name, made(name), texts or TEXTS) for name in names], 5)


def read(source: Intervened, first: int, last: int) -> list[Batch]:
    """Steps of a run that hears every fourth; the loss of the quiz is 1 at step 12."""
    batches = []
    for step in range(first, last):
        batches.append(source.take(step * ROWS, ROWS, step / STEPS))
        if step % 4 == 0:
            source.hear(step / STEPS, {"quiz": 4 - step / 4})
    return batches


def beginnings(batches: list[Batch], experiment: int) -> list[int]:
    """The first tokens of the rows of an experiment."""
    return [int(row[0]) for batch in batches for row in batch.inputs.values[batch.extra["experiment"] == experiment]]


def test_every_method_is_here() -> None:
    assert {card.name for card in methods("data", "intervention")} == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("packing", ["stream", "isolated"])
def test_rows_that_are_not_planted_are_as_they_were(name: str, packing: Packing) -> None:
    plain = windows(packing)
    planted = 0
    for step, batch in enumerate(read(stream(name, packing=packing), 0, STEPS)):
        before = plain.batch(step * ROWS, ROWS)
        free = batch.extra["experiment"] < 0
        for now, then in zip((*batch.inputs, batch.targets), (*before.inputs, before.targets), strict=True):
            assert (now is None) == (then is None)
            assert now is None or then is None or torch.equal(now[free], then[free])
        planted += int((~free).sum())
    assert planted > 5


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("cut", [1, 7, 13])
def test_a_restart_goes_on_exactly(name: str, cut: int) -> None:
    whole = read(stream(name), 0, STEPS)
    before = stream(name)
    first = read(before, 0, cut)
    kept = json.dumps(before.state())
    read(before, cut, cut + 2)  # lost
    after = stream(name)
    after.restore(json.loads(kept))
    for one, other in zip(whole, first + read(after, cut, STEPS), strict=True):
        assert torch.equal(one.inputs.values, other.inputs.values)
        assert torch.equal(one.extra["experiment"], other.extra["experiment"])
    with pytest.raises(ShoestringError, match="not those that the run began with"):
        stream(name, texts=TEXTS[:2]).restore(json.loads(kept))


def test_each_text_is_planted_as_often_as_asked_within_its_stretch() -> None:
    batches = read(stream("planted_texts"), 0, STEPS)
    assert sorted(beginnings(batches, 0)) == sorted([901, 911, 920] * 4)
    counts = [int((batch.extra["experiment"] == 0).sum()) for batch in batches]
    for step in range(STEPS):
        expected = int(12 * min(max((step / STEPS - 0.2) / (0.7 - 0.2), 0), 1))
        assert sum(counts[: step + 1]) == expected


def test_planting_ends_when_the_model_knows() -> None:
    source = stream("planted_until")
    batches = read(source, 0, STEPS)
    counts = [int((batch.extra["experiment"] == 0).sum()) for batch in batches]
    assert sum(counts[:13]) == source.planted["planted_until"] == int(30 * (12 / STEPS - 0.1) / 0.9)
    assert not any(counts[13:])
    with pytest.raises(UsageError, match="is no source of this run: other"):
        made("planted_until").hear(0.5, {"other": 1.0}, 3)


def test_experiments_share_no_row_and_what_finds_none_waits() -> None:
    source = stream(*TABLE)
    batches = read(source, 0, STEPS)
    assert sorted(beginnings(batches, 0)) == sorted([901, 911, 920] * 4)
    assert len(beginnings(batches, 1)) == source.planted["planted_until"]
    crowded = Intervened(stream_of(windows()), [("many", made("planted_texts", times=40), TEXTS)], 0)
    late = read(crowded, 0, STEPS)
    assert max(int((batch.extra["experiment"] == 0).sum()) for batch in late) == ROWS
    assert len(beginnings(late, 0)) == crowded.planted["many"] < 120
    with pytest.raises(UsageError, match="two are 'many'"):
        Intervened(stream_of(windows()), [("many", made("planted_texts"), TEXTS)] * 2)


def test_a_planted_text_is_read_and_predicted_and_is_a_document_of_its_own() -> None:
    for packing in ("stream", "isolated"):
        before, seen = windows(packing), set()
        for step, batch in enumerate(read(stream("planted_texts", packing=packing), 0, STEPS)):
            plain = before.batch(step * ROWS, ROWS)
            for row in (batch.extra["experiment"] == 0).nonzero()[:, 0].tolist():
                values, targets = batch.inputs.values[row].tolist(), batch.targets[row].tolist()
                text = next(text.tolist() for text in TEXTS if text[0] == values[0])
                size = min(len(text), CONTEXT)
                seen.add(size)
                assert values == text[:size] + plain.inputs.values[row].tolist()[size:]
                goals = text[1 : size + 1]
                assert targets[: len(goals)] == goals
                assert targets[size:] == plain.targets[row].tolist()[size:]
                if packing == "isolated" and size < CONTEXT:
                    assert targets[size - 1] == IGNORED
                    assert batch.inputs.documents is not None
                    assert batch.inputs.positions is not None
                    documents, positions = batch.inputs.documents[row], batch.inputs.positions[row]
                    assert (documents[:size] == 0).all()
                    assert (documents[size:] > 0).all()
                    for document in documents.unique():
                        own = positions[documents == document]
                        assert own.tolist() == list(range(len(own)))
        assert seen == {3, 4, CONTEXT}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no text to plant"),
        ('{"txt": "a"}', "line 1 is no"),
        ('{"text": "a"}\n{"text": 3}', "line 2 is no"),
        (None, "cannot be"),
    ],
)
def test_a_file_that_is_none_is_refused(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "texts").write_text(content)
    with pytest.raises(UsageError, match=said):
        read_texts(str(tmp_path / "texts"))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("planted_texts", {"begin": 0.9, "finish": 0.5}, "must be below finish"),
        ("planted_until", {"begin": 1}, "end of the run"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        made(name, **options)
