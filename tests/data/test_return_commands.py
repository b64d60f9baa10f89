"""Return-conditioned chats: every question says what its answer came to; the same words ask for it."""

import json
from pathlib import Path

import pytest

from shoestring.data import DataConfig, prepare
from shoestring.data.return_commands import conditioned, with_command
from shoestring.errors import UsageError
from tests.data.test_chats import assistant, im_end_folder, user, written


def test_every_question_says_what_its_answer_came_to() -> None:
    chat = [user("Name the blue planet"), assistant("The planet is Neptune, blue."), user("Thanks"), assistant("Ok")]
    found = conditioned(chat, ("length", "relevance"))
    assert [one["content"] for one in found] == [
        "Name the blue planet\n[length: 5] [relevance: high]",  # blue, planet of name, blue, planet: two thirds
        "The planet is Neptune, blue.",
        "Thanks\n[length: 1] [relevance: low]",
        "Ok",
    ]
    assert chat[0]["content"] == "Name the blue planet"  # the given chat is as it was


@pytest.mark.parametrize(("words", "told"), [(1, "1"), (4, "3"), (12, "10"), (17, "15"), (5000, "1000")])
def test_lengths_are_rounded(words: int, told: str) -> None:
    (question, _) = conditioned([user("Q"), assistant("w " * words)], ("length",))
    assert question["content"] == f"Q\n[length: {told}]"


def test_what_is_asked_for_is_what_was_learnt() -> None:
    learnt = conditioned([user("Q"), assistant("one two")], ("length",))
    assert with_command([user("Q")], {"length": "2"}) == learnt[:1]
    assert with_command([user("Q")], {}) == (user("Q"),)


def test_a_dataset_has_the_commands_and_learns_none_of_them(tmp_path: Path) -> None:
    im_end_folder(tmp_path / "tokenizer")
    lines = [{"messages": [user(f"Say {n}"), assistant("w " * (1 + n % 3))]} for n in range(20)]
    config = DataConfig(
        corpus=str(written(tmp_path, *lines)),
        tokenizer=str(tmp_path / "tokenizer"),
        kind="chat",
        heldout=0.3,
        returns=("length",),
    )
    store = prepare(config, tmp_path / "cache")
    text = store.tokenizer.decode(store.train.tokens.tolist())
    assert text.count("[length: ") == len(store.train.document_starts)
    assert store.train.marks is not None
    learnt = store.train.tokens[store.train.marks.tokens == 1].tolist()
    assert "length" not in store.tokenizer.decode(learnt)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"returns": ("lenght",), "kind": "chat"}, "did you mean 'length'"),
        ({"returns": ("length",)}, "give data.kind chat"),
    ],
)
def test_what_cannot_be_told_is_refused(words: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        DataConfig(**words)  # type: ignore[arg-type]
    assert json.dumps(words)
