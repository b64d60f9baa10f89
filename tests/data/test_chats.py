"""Chats to learn from: whole conversations in rows, the answers alone as targets, a wrong line refused by its number."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.data import IGNORED, DataConfig, TokenStore, Windows, prepare
from shoestring.data.chat import Chat
from shoestring.data.chat_files import chat_lines, holds_chats, preference_lines
from shoestring.data.chats import MarkedStore, preferences
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import UsageError
from tests.data.test_chat_tokens import CHATML, tokenizer

TEMPLATE = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def im_end() -> TextTokenizer:
    """A tokenizer whose end token is the one that ends messages, as SmolLM2's is."""
    made = tokenizer()
    end = made.rules.token_to_id("<|im_end|>")
    assert end is not None
    return TextTokenizer(made.rules, end=end)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_answers_alone_are_learnt_and_the_end_token_ends_them() -> None:
    own = im_end()
    start = own.rules.token_to_id("<|im_start|>")
    found = Chat(TEMPLATE, own).learnt([user("Hi"), assistant("Yo"), user("Bye"), assistant("So")])
    answers = [token for token, counts in zip(found.ids, found.counted, strict=True) if counts]
    assert answers == [*b"Yo", own.end, *b"So"]
    # the last end token is the document's, and the template's line feed after it is gone
    assert found.ids == [
        *(start, *b"user\nHi", own.end, *b"\n", start, *b"assistant\n", *b"Yo", own.end, *b"\n"),
        *(start, *b"user\nBye", own.end, *b"\n", start, *b"assistant\n", *b"So"),
    ]
    store = MarkedStore([found], own.end)
    assert store.tokens.tolist() == [*found.ids, own.end]
    assert store.marks is not None
    assert store.marks.tokens[-1] == 1


def test_where_answers_end_otherwise_both_ends_are_there() -> None:
    own = tokenizer()  # its end token is <|endoftext|>
    stop = own.rules.token_to_id("<|im_end|>")
    found = Chat(TEMPLATE, own).learnt([user("Hi"), assistant("Yo")])
    answers = [token for token, counts in zip(found.ids, found.counted, strict=True) if counts]
    assert answers == [*b"Yo", stop]
    assert found.ids[-2:] == [stop, ord("\n")]


def test_what_a_prompt_is_cut_into_is_what_training_saw() -> None:
    """An answer that begins with a line feed must not melt into the template's own."""
    own = im_end()
    chat = Chat(TEMPLATE.replace(" | trim", ""), own)
    asked = [user("Hi")]
    found = chat.learnt([*asked, assistant("\n\nYo")])
    assert found.ids[: len(chat.ids(asked))] == chat.ids(asked)


def test_special_tokens_in_a_message_are_text() -> None:
    own = im_end()
    found = Chat(TEMPLATE, own).learnt([user("a<|im_end|>b"), assistant("c<|im_end|>d")])
    assert found.ids.count(own.end) == 1  # the question's; the answer's is the document's


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([user("Hi")], "no message of the assistant"),
        ([assistant("Yo")], "begins with an answer"),
    ],
)
def test_a_chat_without_an_answer_is_refused(messages: list[dict[str, str]], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Chat(TEMPLATE, im_end()).learnt(messages)


def test_a_template_that_rewrites_history_is_refused() -> None:
    template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UsageError, match="writes earlier messages in another way"):
        Chat(template, im_end()).learnt([user("Hi"), assistant("Yo")])


def written(folder: Path, *lines: Any) -> Path:
    path = folder / "chats.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


CHAT = {"messages": [user("Hi"), assistant("Yo")]}


@pytest.mark.parametrize(
    "line",
    [
        CHAT,
        CHAT["messages"],
        {"prompt": "Hi", "completion": "Yo"},
        {"instruction": "Hi", "input": "", "output": "Yo"},
        {"question": "Hi", "answer": "Yo"},
    ],
)
def test_lines_of_each_kind_are_chats(line: Any, tmp_path: Path) -> None:
    path = written(tmp_path, line, "", line)
    assert [messages for _, messages in chat_lines(str(path))] == [tuple(CHAT["messages"])] * 2
    assert holds_chats(str(path))


def test_texts_are_no_chats(tmp_path: Path) -> None:
    assert not holds_chats(str(written(tmp_path, {"text": "Once"})))
    (tmp_path / "a.txt").write_text("Once")
    assert not holds_chats(str(tmp_path / "a.txt"))
    assert not holds_chats(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is not JSON"),
        ({"text": "Once"}, "line 2 is no chat: a line is like"),
        ({"messages": []}, "line 2 is a chat without messages"),
        ({"messages": [{"role": "user"}]}, "line 2 has something that is no message"),
        ({"messages": [{"role": "user", "content": [1]}]}, "line 2 has something that is no message"),
        ({"prompt": "Hi", "completion": None}, "line 2: 'prompt' and 'completion' must be text"),
        ({"messages": [user("Hi")]}, "line 2: there is no message of the assistant"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(line: Any, said: str, tmp_path: Path) -> None:
    im_end_folder(tmp_path / "tokenizer")
    config = DataConfig(corpus=str(written(tmp_path, CHAT, line)), tokenizer=str(tmp_path / "tokenizer"), kind="chat")
    with pytest.raises(UsageError, match=said) as caught:
        prepare(config, tmp_path / "cache")
    assert "\n" not in str(caught.value)


def im_end_folder(folder: Path, template: str | None = TEMPLATE) -> None:
    folder.mkdir()
    own = im_end()
    own.chat_template = template
    own.save(folder)


def test_chats_are_a_dataset_that_is_the_same_each_time(tmp_path: Path, said: list[str]) -> None:
    im_end_folder(tmp_path / "tokenizer")
    lines = [{"messages": [user(f"Say {n}"), assistant(f"It is {n}")]} for n in range(40)]
    config = DataConfig(
        corpus=str(written(tmp_path, *lines)),
        tokenizer=str(tmp_path / "tokenizer"),
        kind="chat",
        heldout=0.2,
        packing="whole",
    )
    first, again = (prepare(config, tmp_path / "cache") for _ in range(2))
    assert first.fingerprint == again.fingerprint
    assert first.tokenizer.chat_template == TEMPLATE
    assert len(first.train.document_starts) + len(first.heldout.document_starts) == 40
    assert 3 <= len(first.heldout.document_starts) <= 14
    assert "40 chats" in said[0]
    batch = Windows(first.heldout, 64, packing="whole").batch(0, 1)
    learnt = batch.targets[batch.targets != IGNORED].tolist()
    assert first.tokenizer.decode(learnt).startswith("It is ")


def test_chats_need_a_template(tmp_path: Path) -> None:
    im_end_folder(tmp_path / "tokenizer", None)
    path = str(written(tmp_path, CHAT))
    for own, said in ((str(tmp_path / "tokenizer"), "has no chat template"), ("bpe", "give model.base")):
        with pytest.raises(UsageError, match=said):
            prepare(DataConfig(corpus=path, tokenizer=own, kind="chat"), tmp_path / "cache")


def test_preferences_share_what_they_answer(tmp_path: Path) -> None:
    im_end_folder(tmp_path / "tokenizer")
    lines = [
        {"prompt": "Hi", "chosen": "Yo", "rejected": "No"},
        {"prompt": [user("Hi")], "chosen": [assistant("Yo")], "rejected": [assistant("No")]},
        {"chosen": [user("Hi"), assistant("Yo")], "rejected": [user("Hi"), assistant("No")]},
    ]
    path = written(tmp_path, *lines)
    assert len({repr(pair) for _, pair in preference_lines(str(path))}) == 1
    found = preferences(DataConfig(corpus=str(path), tokenizer=str(tmp_path / "tokenizer")))
    own = im_end()
    for chosen, rejected in found:
        assert [t for t, counts in zip(chosen.ids, chosen.counted, strict=True) if counts] == [*b"Yo"]
        assert [t for t, counts in zip(rejected.ids, rejected.counted, strict=True) if counts] == [*b"No"]
        assert chosen.ids[:-2] == rejected.ids[:-2]
    assert own.end not in found[0][0].ids[-2:]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"chosen": "Yo"}, "line 1 is no pair of answers"),
        ({"chosen": "Yo", "rejected": "No"}, "nothing that they answer"),
        ({"chosen": [user("Hi"), assistant("a")], "rejected": [user("Ho"), assistant("b")]}, "not to the same chat"),
        ({"prompt": "Hi", "chosen": [user("a")], "rejected": "b"}, "must each end with a message of the assistant"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "is no pair of answers"),
    ],
)
def test_a_wrong_pair_is_refused_with_its_line(line: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        list(preference_lines(str(written(tmp_path, line))))


documents = st.lists(st.lists(st.integers(1, 9), max_size=14), min_size=1, max_size=14)


@settings(deadline=None)
@given(documents=documents, context=st.integers(1, 12), marked=st.booleans())
def test_whole_windows_as_a_slow_reference_has_them(documents: list[list[int]], context: int, marked: bool) -> None:
    from shoestring.data.chat import Learnt

    store = (
        MarkedStore([Learnt(ids, [token % 2 == 0 for token in ids]) for ids in documents], 0)
        if marked
        else TokenStore.of(documents, 0)
    )
    pairs = Counter(  # every token with its successor in its document, where that is learnt
        (one, other)
        for ids in documents
        for one, other in zip(ids, [*ids[1:], 0][: len(ids)], strict=True)
        if not marked or other % 2 == 0
    )
    if sum(len(ids) + 1 for ids in documents) < 2:
        return
    windows = Windows(store, context, packing="whole", shuffle=False)
    batch = windows.batch(0, len(windows))
    inputs, targets = batch.inputs.values.numpy(), batch.targets.numpy()
    counts = targets != IGNORED
    found = Counter(zip(inputs[counts].tolist(), targets[counts].tolist(), strict=True))
    assert found == pairs
    assert batch.inputs.documents is not None
    assert batch.inputs.positions is not None
    for row in range(len(windows)):
        own = batch.inputs.documents[row].numpy()
        short = [d for d in np.unique(own[counts[row]]) if (own == d).sum() <= context]
        for document in short:  # a document that is learnt from here starts here
            assert int(batch.inputs.positions[row][own == document][0]) == 0


def test_a_document_that_fits_is_never_cut() -> None:
    store = TokenStore.of([[1] * 5, [2] * 5, [3] * 7], 0)
    batch = Windows(store, 8, packing="whole", shuffle=False).batch(0, 3)
    assert batch.inputs.values.tolist() == [[1] * 5 + [0] * 3, [2] * 5 + [0] * 3, [3] * 7 + [0]]
