"""Questions with answers: the answers alone are targets, in windows of any packing; what is no question is refused by its line."""

import json
from pathlib import Path

import pytest

from shoestring.data import IGNORED, DataConfig, Windows, prepare
from shoestring.data.answers import answer_lines
from shoestring.errors import UsageError
from shoestring.task.documents import Portion, write_corpus
from shoestring.task.tasks.arithmetic import Arithmetic

END = 256


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.jsonl"
    assert write_corpus(path, [Portion(Arithmetic(digits=1, operations="+"), 40)], seed=0) == 40
    return path


@pytest.mark.parametrize("packing", ["stream", "isolated", "whole"])
def test_answers_and_the_end_after_them_are_all_that_is_learnt(
    corpus: Path, tmp_path: Path, packing: str, said: list[str]
) -> None:
    config = DataConfig(str(corpus), tokenizer="bytes", kind="answers", heldout=0.2, packing=packing)  # type: ignore[arg-type]
    made = prepare(config, tmp_path)
    assert "40 questions" in said[0]
    lines = [json.loads(line) for line in corpus.read_text().splitlines()]
    known = {(*row["prompt"].encode(), *row["answer"].encode()): row for row in lines}
    assert len(made.train) + len(made.heldout) == sum(len(ids) + 1 for ids in known)
    batch = Windows(made.train, 24, packing=packing, shuffle=False).batch(0, 4)  # type: ignore[arg-type]
    learnt = batch.targets[batch.targets != IGNORED].tolist()
    text = bytes(token for token in learnt if token != END).decode()
    answers = "".join(row["answer"] for row in lines)
    assert set(text) <= set(answers)
    assert not set(text) & set("+=")
    assert text.count("\n") == learnt.count(END) > 4
    again = prepare(config, tmp_path)
    assert again.fingerprint == made.fingerprint


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"prompt": "a", "answer": "b"}\n{"prompt": "a"}\n', "line 2 is no question with an answer: a line is like"),
        ('{"prompt": "a", "answer": ""}\n', "line 1 is no question"),
        ('{"prompt": "a", "answer": 7}\n', "line 1 is no question"),
        ("[1]\n", "line 1 is no question"),
        ("{]\n", "line 1 is not JSON"),
        ('{"prompt": "\\ud800", "answer": "b"}\n', "half of a surrogate pair"),
    ],
)
def test_what_is_no_question_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "wrong.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError, match=said):
        list(answer_lines(str(path)))


def test_a_tokenizer_that_is_to_be_trained_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="answers goes with"):
        prepare(DataConfig(str(corpus), kind="answers"), tmp_path)
