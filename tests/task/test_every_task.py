"""One table for every task: right answers are right, near misses are not, splits are apart, no text breaks a check."""

import importlib.util
import json
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from annotated_types import Interval
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoestring.config import Choice
from shoestring.errors import UsageError
from shoestring.method import Card, methods
from shoestring.task import SPLITS, Problem, Task
from shoestring.task.task import GeneratedTask, split_of

LINES: dict[str, list[dict[str, Any]]] = {
    "multiple_choice": [
        {"question": f"Which is {number}?", "choices": [str(number - 1), str(number), str(10 * number)], "answer": 1}
        for number in range(2, 300)
    ],
    "exact_match": [{"question": f"What is {n} as a word?", "answer": [f"word {n}", f"The {n}."]} for n in range(300)],
}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "arithmetic": [{}, {"digits": 6, "terms": 4, "operations": "+-*"}, {"digits": 18, "terms": 16, "operations": "*"}],
    "countdown": [{}, {"numbers": 2}, {"numbers": 6, "largest": 100, "target": 999}],
    "list_operations": [{}, {"operation": "sort", "length": 64}, {"operation": "reverse", "largest": 999}],
    "listops": [{}, {"depth": 6, "arguments": 5}],
    "needle": [{}, {"sentences": 0}, {"sentences": 60, "needles": 8, "depth": 1.0, "digits": 18}],
    "recall": [{}, {"pairs": 60, "letters": 3, "digits": 6}, {"pairs": 1, "digits": 1}],
    "sudoku": [{}, {"holes": 12}],
    "reasoning_gym": [{"dataset": "chain_sum"}, {"dataset": "leg_counting", "settings": {"max_animals": 4}}],
    "multiple_choice": [{"split": "hashed"}],
    "exact_match": [{"split": "hashed"}, {"split": "hashed", "compare": "exact"}],
}
CARDS = {card.name: card for card in methods("task", "task") if card.target.__module__.startswith("shoestring.")}
CASES = [(name, options) for name in CARDS for options in OPTIONS[name]]


def made(name: str, options: Mapping[str, Any], folder: Path) -> Task:
    if name == "reasoning_gym" and importlib.util.find_spec("reasoning_gym") is None:
        pytest.skip("reasoning-gym is not installed")
    if name in LINES:
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in LINES[name]))
        options = {**options, "path": str(path)}
    task: Task = Choice.of("task", name, kind="task", **options).build()
    return task


@pytest.fixture(params=CASES, ids=[f"{name}-{place}" for place, (name, _) in enumerate(CASES)])
def task(request: pytest.FixtureRequest, tmp_path: Path) -> Task:
    name, options = request.param
    return made(name, options, tmp_path)


@lru_cache(maxsize=2)
def first(task: Task) -> Problem:
    return task.problems("test", 0, 1)[0]


def changed_digits(answer: str) -> list[str]:
    """The answer with each of its digits, one at a time, made another."""
    return [
        answer[:place] + ("3" if each == "4" else "4") + answer[place + 1 :]
        for place, each in enumerate(answer)
        if each.isdigit()
    ]


def test_the_right_answer_scores_1_however_it_is_spaced(task: Task) -> None:
    for problem in task.problems("test", 0, 20):
        assert problem.answer
        for text in (f" {problem.answer}", problem.answer, f"  {problem.answer} \n"):
            score = task.check(problem, text)
            assert (score.value, score.right, score.reason) == (1.0, True, ""), text
        assert task.extract(problem, problem.answer) == task.extract(problem, f" {problem.answer} ")


def test_near_misses_score_0(task: Task) -> None:
    for problem in task.problems("test", 0, 10):
        assert problem.answer
        misses = [
            "",
            "?",
            *changed_digits(problem.answer),
            f"{problem.answer}7",
            f"7{problem.answer}",
            problem.answer[:-1],
        ]
        for text in misses:
            if task.extract(problem, text) != task.extract(problem, problem.answer):  # '07' is 7
                score = task.check(problem, text)
                assert not score.right, (problem, text)
                assert score.reason


def test_one_answer_is_no_other_ones(task: Task) -> None:
    problems = task.problems("test", 0, 20)
    assert (
        sum(
            task.check(one, other.answer or "").right for one, other in pairwise(problems) if one.answer != other.answer
        )
        <= 1
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(text=st.text() | st.text(alphabet="0123456789.+-*/()[]=,: \n\u2212\u00d7\u0664ab", max_size=80))
def test_no_text_breaks_a_check(task: Task, text: str) -> None:
    problem = first(task)
    score = task.check(problem, text)
    assert 0 <= score.value <= 1
    assert task.check(problem, text) == score
    found = task.extract(problem, text)
    assert found is None or found


@pytest.mark.parametrize(
    "text", ["9" * 5000, "(" * 5000, "\ud800", "[" * 3000 + "1", "-" * 4000, "1e999", "0x10", "1_0"]
)
def test_nor_does_a_hostile_one(task: Task, text: str) -> None:
    assert not task.check(first(task), text).right


def test_splits_are_apart_whatever_the_seeds(task: Task) -> None:
    held = {split: {p.id: p for seed in (0, 1, 5) for p in task.problems(split, seed, 25)} for split in SPLITS}
    for one in SPLITS:
        assert held[one]
        for other in SPLITS:
            assert one == other or held[one].keys().isdisjoint(held[other])
    if isinstance(task, GeneratedTask):
        for split in SPLITS:
            assert {split_of(task.group(problem)) for problem in held[split].values()} == {split}


def test_problems_are_those_of_their_seed(task: Task) -> None:
    twelve = task.problems("test", 3, 12)
    assert task.problems("test", 3, 12) == twelve
    assert task.problems("test", 3, 5) == twelve[:5]
    assert task.problems("test", 4, 12) != twelve
    assert len({problem.id for problem in twelve}) == len(twelve)
    assert task.problems("test", 3, 0) == []
    for problem in twelve:
        assert problem.prompt == problem.prompt.rstrip() != ""
        assert problem.answer is None or problem.answer == problem.answer.strip()
        assert not any(stop in f" {problem.answer}" for stop in task.stop)


def test_an_answer_has_room(task: Task) -> None:
    if task.most_tokens == 256:
        pytest.skip("its room is an option")
    for problem in task.problems("test", 0, 40):
        assert len(f" {problem.answer}\n".encode()) <= task.most_tokens
        assert task.document(problem).startswith(f"{problem.prompt} {problem.answer}")


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_its_options_are_bound(card: Card) -> None:
    good = {**OPTIONS[card.name][0], **({"path": "lines.jsonl"} if card.name in LINES else {})}
    checked = 0
    for name, field in card.options().model_fields.items():
        for bound in (each for each in field.metadata if isinstance(each, Interval)):
            for beyond in (bound.ge, bound.le):
                assert beyond is not None, f"{card.name}.{name} has no bound"
                wrong = beyond - 1 if beyond == bound.ge else beyond + 1  # type: ignore[operator]
                with pytest.raises(UsageError, match=name):
                    Choice.of("task", card.name, kind="task", **{**good, name: wrong})
                checked += 1
    with pytest.raises(UsageError, match="unknown key"):
        Choice.of("task", card.name, kind="task", **good, nonsense=1)
    assert checked or card.name == "multiple_choice"


FIRST = {
    "arithmetic": ("arithmetic-942693d468d9", "779"),
    "countdown": ("countdown-e8aff7c10953", "20 - (6 - 4)"),
    "list_operations": ("list_operations-74b3c58eecc8", "28 95"),
    "listops": ("listops-06ea4dd9cb2a", "3"),
    "needle": ("needle-eed658eb65b2", "9710"),
    "recall": ("recall-33400ad7f358", "18"),
    "sudoku": ("sudoku-ada2c319b068", "2413/3142/1324/4231"),
}
"""The id and the answer of the first problem of the defaults."""


@pytest.mark.parametrize("name", sorted(FIRST))
def test_problems_are_the_same_everywhere(name: str, tmp_path: Path) -> None:
    problem = made(name, {}, tmp_path).problems("test", 0, 1)[0]
    assert (problem.id, problem.answer) == FIRST[name]
