"""What is particular to each task, against slow references."""

import ast
import itertools
import json
import operator
import re
import statistics
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.config import Choice
from shoestring.errors import ShoestringError, UsageError
from shoestring.task import SPLITS, Problem, Score, Task
from shoestring.task.chance import Chance
from shoestring.task.documents import Portion, documents, write_corpus
from shoestring.task.formula import NoFormula, numbers_and_value
from shoestring.task.reading import last_whole_number
from shoestring.task.tasks.sudoku import grids, solved


def task(name: str, **options: Any) -> Task:
    found: Task = Choice.of("task", name, kind="task", **options).build()
    return found


OPERATIONS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def by_python(formula: str) -> Fraction:
    """The value of a formula, by Python's own parser."""

    def value(node: ast.AST) -> Fraction:
        if isinstance(node, ast.BinOp):
            return Fraction(OPERATIONS[type(node.op)](value(node.left), value(node.right)))
        assert isinstance(node, ast.Constant)
        assert isinstance(node.value, int)
        return Fraction(node.value)

    return value(ast.parse(formula, mode="eval").body)


# ---- arithmetic


@pytest.mark.parametrize("operations", ["+", "-", "*", "+-", "+-*"])
def test_arithmetic_is_that_of_python(operations: str) -> None:
    for problem in task("arithmetic", operations=operations, terms=4, digits=5).problems("train", 1, 50):
        assert by_python(problem.prompt.removesuffix(" =")) == int(problem.answer or "")


def test_sums_of_the_same_numbers_are_in_one_split() -> None:
    sums = task("arithmetic", operations="+", digits=2)
    seen = {
        split: {tuple(sorted(p.data["numbers"])) for p in sums.problems(split, 0, 400)} for split in ("train", "test")
    }
    assert seen["train"].isdisjoint(seen["test"])


def test_a_small_set_of_problems_has_an_end() -> None:
    sums = task("arithmetic", operations="+", digits=1)
    found = {split: sums.problems(split, 0, 1000) for split in ("train", "tuning", "test")}
    assert sum(map(len, found.values())) == 100
    assert len(found["train"]) > 60


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("46", "46"),
        ("It is 46.", "46"),
        ("4 + 42 = 46", "46"),
        ("-0", "0"),
        ("1,234", "1234"),
        ("007", "7"),
        ("\u22127", "-7"),
        ("46.5", None),
        ("46.0", None),
        ("x46", None),
        ("46kg", None),
        ("no", None),
        ("12,34", "34"),
    ],
)
def test_the_last_whole_number(text: str, found: str | None) -> None:
    assert last_whole_number(text) == found


# ---- countdown


@given(
    numbers=st.lists(st.integers(0, 99), min_size=1, max_size=6),
    signs=st.lists(st.sampled_from("+-*/"), min_size=5, max_size=5),
    brackets=st.randoms(use_true_random=False),
)
def test_a_formula_has_the_value_that_python_gives(numbers: list[int], signs: list[str], brackets: Any) -> None:
    parts = [str(number) for number in numbers]
    while len(parts) > 1:
        place = brackets.randrange(len(parts) - 1)
        joined = f"{parts[place]} {signs[len(parts) - 2]} {parts[place + 1]}"
        parts[place : place + 2] = [f"({joined})" if brackets.random() < 0.6 else joined]
    try:
        expected = by_python(parts[0])
    except ZeroDivisionError:
        with pytest.raises(NoFormula, match="zero"):
            numbers_and_value(parts[0])
        return
    assert numbers_and_value(parts[0]) == (numbers, expected)


@pytest.mark.parametrize(
    "text",
    ["", "()", "1 2", "1+", "+1", "-1", "(1", "1)", "1**2", "1//2", "2(3)", "1.5", "a", "1;2", "1_0", "1" * 10, "( )1"],
)
def test_what_is_no_formula_is_refused(text: str) -> None:
    with pytest.raises(NoFormula):
        numbers_and_value(text)


def made_up(numbers: list[int], target: int) -> Problem:
    return Problem("x", "make", {"numbers": numbers, "target": target}, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("25 + 3 * 7", ""),
        (" 7*3+25 = 46", ""),
        ("(25 + 3 \u00d7 7)", ""),
        ("25 + 3 + 7", "another value"),
        ("46", "not those given"),
        ("25 + 21", "not those given"),
        ("25 + 3 * 7 + 7 - 7", "not those given"),
        ("25 + 3 * seven", "no part of a formula"),
        ("25 / (3 - 3) * 7", "zero"),
        ("__import__('os')", "no part of a formula"),
        ("1" + "+1" * 100, "too long"),
    ],
)
def test_countdown_checks_numbers_and_value(text: str, reason: str) -> None:
    score = task("countdown").check(made_up([3, 7, 25], 46), text)
    assert score.right == (not reason)
    assert reason in score.reason


def test_a_value_is_exact() -> None:
    countdown = task("countdown", numbers=4)
    assert countdown.check(made_up([1, 5, 5, 5], 24), "5 * (5 - 1 / 5)").right
    assert not countdown.check(made_up([1, 3, 100000], 33333), "100000 * 1 / 3").right


# ---- sudoku


def test_there_are_288_grids() -> None:
    assert len(set(grids())) == 288
    rows = ["".join(row) for row in itertools.permutations("1234")]
    slowly = [grid for grid in itertools.product(rows, repeat=4) if len({r[0] for r in grid}) == 4 and solved(grid)]
    assert sorted(slowly) == sorted(grids())


def test_any_grid_that_keeps_what_is_given_is_right() -> None:
    sudoku = task("sudoku", holes=12)
    for problem in sudoku.problems("test", 0, 10):
        given_there = problem.data["given"]
        fitting = [
            "/".join(grid)
            for grid in grids()
            if all(a in (".", b) for a, b in zip(given_there, "/".join(grid), strict=True))
        ]
        assert len(fitting) > 1
        assert all(sudoku.check(problem, f"the grid is\n{grid}.".replace("/", "\n")).right for grid in fitting)
        others = ["/".join(grid) for grid in grids() if "/".join(grid) not in fitting]
        assert not any(sudoku.check(problem, grid).right for grid in others)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1234/3412/2143/4321", ""),
        ("1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 1", ""),
        ("1234/3412/2143/432.", "not full"),
        ("2134/3412/1243/4321", "given"),
        ("1234/3412/2143/4331", "twice"),
        ("1234/3412/2143", "no answer"),
        ("1234/3412/2143/43215", "no answer"),
    ],
)
def test_sudoku_says_what_is_wrong(text: str, reason: str) -> None:
    score = task("sudoku").check(Problem("x", "", {"given": "12../..../..../...."}), text)
    assert score.right == (not reason)
    assert reason in score.reason


# ---- list operations


def by_stack(text: str) -> int:
    """ListOps as its authors' reader has it: tokens on a stack, an operation when its bracket closes."""
    stack: list[Any] = []
    for token in text.split():
        if token != "]":
            stack.append(int(token) if token.isdigit() else token)
            continue
        values: list[int] = []
        while isinstance(stack[-1], int):
            values.append(stack.pop())
        name = stack.pop()
        how: dict[str, Any] = {
            "[MIN": min,
            "[MAX": max,
            "[MED": lambda v: int(statistics.median(v)),
            "[SM": lambda v: sum(v) % 10,
        }
        stack.append(how[name](values))
    (found,) = stack
    return int(found)


def test_listops_is_that_of_its_paper() -> None:
    problems = task("listops", depth=5, arguments=5, nested=0.4).problems("train", 0, 200)
    for problem in problems:
        assert by_stack(problem.prompt.removesuffix(" =")) == int(problem.answer or "")
    depths = [max(itertools.accumulate((c == "[") - (c == "]") for c in problem.prompt)) for problem in problems]
    assert max(depths) == 5
    assert min(Counter(problem.answer for problem in problems).values()) > 5


def test_list_operations_do_what_they_say() -> None:
    for problem in task("list_operations").problems("train", 0, 200):
        said, _, words = problem.prompt.removesuffix(" =").partition(": ")
        items = [int(word) for word in words.split()]
        swap = re.fullmatch(r"replace (\d+) by (\d+)", said)
        if swap:
            assert int(swap[1]) in items
            expected = [int(swap[2]) if item == int(swap[1]) else item for item in items]
        else:
            expected = {"copy": items, "reverse": items[::-1], "sort": sorted(items)}[said]
        assert problem.answer == " ".join(map(str, expected))


@pytest.mark.parametrize("text", ["3 1 7", "[3, 1, 7]", "3,1,7", "so it is\n3 1 7\n", "[3 1 7]"])
def test_lists_are_read_as_people_write_them(text: str) -> None:
    assert task("list_operations").extract(Problem("x", ""), text) == "3 1 7"


# ---- long contexts


def test_the_needle_stands_where_it_is_asked_for() -> None:
    for depth, place in ((0.0, 0), (1.0, -1)):
        for problem in task("needle", depth=depth, needles=3, sentences=30).problems("test", 0, 5):
            text, _, question = problem.prompt.partition("\n")
            sentences = text.split(". ")
            assert sentences[place].removesuffix(".") == f"{question} {problem.answer}"
            assert len(sentences) == 33
            assert text.count("The number of") == 3


def test_recall_asks_for_a_key_that_is_there_once() -> None:
    for problem in task("recall", pairs=40).problems("test", 0, 20):
        *pairs, asked = problem.prompt.split("; ")
        values = dict(pair.split(": ") for pair in pairs)
        assert len(values) == len(pairs) == 40
        assert values[asked.removesuffix(":")] == problem.answer
        assert pairs[problem.data["place"]].startswith(asked)


def test_keys_must_be_enough() -> None:
    with pytest.raises(ValueError, match="too many for keys"):
        task("recall", pairs=400, letters=1)


# ---- files


def lines(tmp_path: Path, *rows: object) -> str:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def test_a_choice_is_named_by_place_letter_or_text(tmp_path: Path) -> None:
    path = lines(
        tmp_path, *({"question": f"{n}", "choices": ["x", "yy"], "answer": a} for n, a in enumerate([1, "B", "yy"]))
    )
    choice = task("multiple_choice", path=path)
    problems = choice.problems("test", 0, 10)
    assert len(problems) == 3
    assert choice.problems("train", 0, 10) == []
    for problem in problems:
        assert problem.options == ("x", "yy")
        for text, right in (
            ("yy", True),
            ("B", True),
            ("(B) yy", True),
            ("x", False),
            ("A", False),
            ("y", False),
            ("C", False),
        ):
            assert choice.check(problem, text).right == right


def test_the_same_question_with_other_choices_is_another(tmp_path: Path) -> None:
    rows = [{"question": "Which?", "choices": ["x", str(n)], "answer": 0} for n in (1, 2, 2)]
    assert len(task("multiple_choice", path=lines(tmp_path, *rows)).problems("test", 0, 9)) == 2


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("multiple_choice", {"question": "x", "choices": ["a", "b"], "answer": 2}, "line 1: 'answer' is no choice"),
        ("multiple_choice", {"question": "x", "choices": ["a", "b"], "answer": True}, "'answer' is no choice"),
        ("multiple_choice", {"question": "x", "choices": ["a", "a"], "answer": 0}, "two choices are the same"),
        ("multiple_choice", {"question": "x", "choices": ["a"], "answer": 0}, "'choices' is not a list"),
        ("multiple_choice", {"question": 3, "choices": ["a", "b"], "answer": 0}, "'question' is not text"),
        ("multiple_choice", {"choices": ["a", "b"], "answer": 0}, "'question' is missing"),
        ("exact_match", {"question": "x", "answer": 3}, "'answer' is not text"),
        ("exact_match", {"question": "x", "answer": []}, "'answer' is not text"),
        ("exact_match", {"question": "x", "answer": "y", "split": "dev"}, "'split' is one of"),
    ],
)
def test_a_line_that_is_no_problem_is_named(name: str, row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        task(name, path=lines(tmp_path, row))


def test_a_file_must_be_there_and_hold_something(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        task("exact_match", path=str(tmp_path / "none.jsonl"))
    with pytest.raises(UsageError, match="holds no problems"):
        task("exact_match", path=lines(tmp_path))
    (tmp_path / "torn.jsonl").write_text("{]\n{}\n")
    with pytest.raises(ShoestringError, match="line 1, is damaged"):
        task("exact_match", path=str(tmp_path / "torn.jsonl"))


@pytest.mark.parametrize(("compare", "right"), [("loose", True), ("exact", False)])
def test_loose_answers_differ_in_case_marks_and_articles(compare: str, right: bool, tmp_path: Path) -> None:
    match = task(
        "exact_match", path=lines(tmp_path, {"question": "x", "answer": ["The Nile", "Nile river"]}), compare=compare
    )
    (problem,) = match.problems("test", 0, 1)
    assert match.check(problem, "nile.").right == right
    assert match.check(problem, "The Nile").right
    assert not match.check(problem, "the Niles").right
    assert match.check(problem, "the") == (
        Score(0.0, "no answer was found") if right else Score(0.0, "another answer is right")
    )


# ---- reasoning-gym


def test_checks_that_run_answers_are_refused() -> None:
    pytest.importorskip("reasoning_gym")
    for name in ("binary_matrix", "countdown", "n_queens", "polynomial_multiplication", "puzzle24", "spiral_matrix"):
        with pytest.raises(UsageError, match="runs answers as Python"):
            task("reasoning_gym", dataset=name)
    with pytest.raises(UsageError, match="did you mean 'chain_sum'"):
        task("reasoning_gym", dataset="chain_sums")
    with pytest.raises(UsageError, match=r"chain_sum: .*nonsense"):
        task("reasoning_gym", dataset="chain_sum", settings={"nonsense": 1})


# ---- the corpus, and chance


def test_a_corpus_holds_no_problem_of_another_split(tmp_path: Path) -> None:
    portions = [Portion(task("arithmetic", digits=2), 100), Portion(task("sudoku"), 40)]
    path = tmp_path / "corpus.jsonl"
    assert write_corpus(path, portions, 3) == 140
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    texts = [row["prompt"] + row["answer"] for row in rows]
    assert texts == list(documents(portions, 3))
    assert sum("/" in text for text in texts[:80]) == 40  # in turn
    assert Counter(documents([Portion(portions[1].task, 40, times=3)], 3)) == Counter(
        dict.fromkeys((text for text in texts if "/" in text), 3)
    )
    for portion in portions:
        for split in SPLITS[1:]:
            held = portion.task.problems(split, 3, 200)
            assert not any(text.startswith(problem.prompt) for problem in held for text in texts)


@given(st.integers(0, 1000))
def test_draws_are_within_their_limits(seed: int) -> None:
    chance = Chance(str(seed))
    assert {chance.whole(3, 5) for _ in range(60)} == {3, 4, 5}
    assert sorted(chance.shuffled(range(9))) == list(range(9))
    some = chance.some(range(9), 4)
    assert len(set(some)) == 4
    assert all(0 <= chance.number(3) <= 999 for _ in range(50))


def test_orders_are_equally_likely() -> None:
    chance = Chance("orders")
    counts = Counter(tuple(chance.shuffled("abc")) for _ in range(6000))
    assert len(counts) == 6
    assert all(abs(count - 1000) < 150 for count in counts.values())
