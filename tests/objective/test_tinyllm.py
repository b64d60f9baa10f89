"""Answers and rationales of several teachers: which token counts how much, and where the rationales come from."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from shoestring.budget.charge import Charge
from shoestring.budget.ledger import MODEL
from shoestring.contract.author import Authored, AuthoredText
from shoestring.contract.objective import At
from shoestring.data import IGNORED, DataConfig, Windows, prepare
from shoestring.data.answers import WHY, questions
from shoestring.data.rationales import write_rationales
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.objective.cross_entropy import plain
from shoestring.objective.tinyllm import TinyLLM
from tests.flop_counting import CPU_ATTENTION


class Teacher:
    """Explains by its name; every third text is cut off."""

    digest = "a teacher"

    def __init__(self, name: str) -> None:
        self.name, self.asked = name, list[str]()

    def answers(self, asked: Sequence[str], seeds: Sequence[int], tokens: int, temperature: float) -> Authored:
        self.asked += asked
        texts = [AuthoredText(f" {self.name} because {n}. ", n % 3 < 2) for n in range(len(asked))]
        return Authored(tuple(texts), Charge(flops=10, calls=len(asked)))


def corpus(path: Path, rationales: bool = True) -> Path:
    rows = [{"prompt": f"{n} + 1 =", "answer": f" {n + 1}"} for n in range(12)]
    plain_rows = path / "questions.jsonl"
    plain_rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not rationales:
        return plain_rows
    found, made = list(questions(str(plain_rows))), path / "explained.jsonl"
    spent = write_rationales(found, {"large": (a := Teacher("large")), "kind": Teacher("kind")}, made)
    assert (spent.flops, spent.calls) == (20, 24)
    assert all("The answer is:" in text for text in a.asked)
    again = list(questions(str(made)))
    assert [one[:3] for one in again] == [
        (str(one.place).replace("questions", "explained"), *one[1:3]) for one in found
    ]
    assert again[0].rationales == {"large": "large because 0.", "kind": "kind because 0."}
    assert again[2].rationales == {}
    shown = Teacher("third")  # explanations that are there already are examples for the next teacher
    write_rationales(again, {"third": shown}, path / "more.jsonl", examples=2)
    assert all(text.count("Explanation:") == 3 for text in shown.asked)
    assert not any(f"Question: {n} + 1" in text.rpartition("Question:")[0] for n, text in enumerate(shown.asked[:2]))
    return made


def student() -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(layers=1, width=16, heads=2, vocabulary=257, context=40))


def test_loss_is_that_of_answers_and_of_each_teacher_weighed(tmp_path: Path) -> None:
    made = prepare(
        DataConfig(str(corpus(tmp_path)), tokenizer="bytes", kind="answers", heldout=0.2, packing="whole"), tmp_path
    )
    text = bytes(token for token in made.heldout.tokens if token < 256).decode()
    assert "because" not in text
    batch = Windows(made.train, 40, packing="whole", shuffle=False).batch(0, 6)
    marks = batch.extra["mark"]
    for number, word in ((1, ""), (2, "kind because"), (3, "large because")):
        learnt = bytes(t for t in batch.targets[(marks == number) & (batch.targets != IGNORED)].tolist() if t < 256)
        assert word in learnt.decode()
        assert WHY not in learnt.decode()
    model, one = student(), TinyLLM(plain, alpha=(0.25, 2.0))
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        loss = one(model, batch, At())
        loss.mean.backward()
    assert loss.spent[MODEL].flops == pytest.approx(counter.get_total_flops(), rel=0.001)
    logits = model(batch.inputs.values, batch.inputs.positions, batch.inputs.documents)
    total, whole = torch.zeros(()), 0.0
    for row in range(batch.rows):
        for place in range(40):
            if batch.targets[row, place] != IGNORED:
                weight = {1: 1.0, 2: 0.25, 3: 2.0}[int(marks[row, place])]
                total = total + weight * F.cross_entropy(logits[row, place], batch.targets[row, place])
                whole += weight
    torch.testing.assert_close(loss.mean, total / whole)
    assert one.count(batch) == pytest.approx(whole)
    assert set(loss.parts) == {"answers", "rationales"}


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    bare = prepare(
        DataConfig(str(corpus(tmp_path, False)), tokenizer="bytes", kind="answers", packing="whole"), tmp_path
    )
    batch = Windows(bare.train, 40, packing="whole").batch(0, 2)
    with pytest.raises(UsageError, match="lines have 'rationales'"):
        TinyLLM(plain)(student(), batch, At())
    explained = prepare(DataConfig(str(corpus(tmp_path)), tokenizer="bytes", kind="answers", packing="whole"), tmp_path)
    batch = Windows(explained.train, 40, packing="whole").batch(0, 6)
    batch.extra["mark"][0, 0] = 4
    with pytest.raises(UsageError, match="of 3 teachers, and alpha has 2"):
        TinyLLM(plain, alpha=(0.1, 0.2)).count(batch)
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"prompt": "a", "answer": "b", "rationales": ["c"]}\n')
    with pytest.raises(UsageError, match="line 1: rationales are texts by the names of teachers"):
        list(questions(str(wrong)))
