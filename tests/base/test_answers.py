"""Answers through the engine are those of one model asked alone; options are chosen as a plain loop chooses them."""

import json
from pathlib import Path

import pytest
import torch

from shoestring.base.answers import GREEDY, Answers, Asking, ask
from shoestring.base.opened import Opened, Provenance
from shoestring.config import Choice, build
from shoestring.data.bpe import byte_tokenizer
from shoestring.decode import Sampling, Stop, generate
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.task import Problem, Score, Split, Task

CONTEXT = 96


@pytest.fixture(scope="module")
def opened() -> Opened:
    torch.manual_seed(2)
    shape = {"layers": 2, "width": 32, "heads": 2, "vocabulary": 257, "context": CONTEXT}
    model = Transformer(build(ModelConfig, shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return Opened(model, byte_tokenizer(), Provenance("here", "run", "0"))


class Letters(Task):
    """Any answer whose first byte is even is right."""

    stop, most_tokens = ("|", "G"), 12

    def __init__(self, options: tuple[str, ...] = ()) -> None:
        self.options = options

    def problems(self, split: Split, seed: int, count: int) -> list[Problem]:
        return [Problem(f"{split}-{n}", f"{split} {n * n}", {}, str(n), self.options) for n in range(count)]

    def extract(self, problem: Problem, text: str) -> str | None:
        return text[:1] or None

    def judge(self, problem: Problem, answer: str) -> Score:
        return Score(1.0) if ord(answer) % 2 == 0 else Score(0.0, "odd")


def alone(opened: Opened, text: str, sampling: Sampling, *, whole: bool = False) -> str:
    """What a model writes after a text when nothing is asked beside it, up to a stop string, or whole."""
    tokenizer = opened.tokenizer
    assert tokenizer is not None
    prompt = [tokenizer.end, *tokenizer.encode(text)]
    tokens = list(generate(opened.model, prompt, sampling, max_new_tokens=12, end=tokenizer.end))
    found: str = tokenizer.decode(tokens)
    return found if whole else min((found.partition(stop)[0] for stop in Letters.stop), key=len)


def test_answers_are_those_of_a_model_asked_alone(opened: Opened) -> None:
    task = Letters()
    problems = task.problems("test", 0, 9)
    found = ask(opened, task, problems, Asking(rows=4))
    assert [reply.text for reply in found.replies] == [alone(opened, problem.prompt, GREEDY) for problem in problems]
    assert [reply.score for reply in found.replies] == [task.check(r.problem, r.text) for r in found.replies]
    assert found.accuracy.right.tolist() == [int(reply.score.right) for reply in found.replies]
    assert 0 < found.accuracy.right.sum() < 9
    assert {reply.stop for reply in found.replies} <= {Stop.END, Stop.LENGTH}
    texts = [alone(opened, problem.prompt, GREEDY, whole=True) for problem in problems]
    assert found.cut == sum("|" not in text and "G" not in text for text in texts)
    assert 0 < found.cut < 9
    assert found.spent.written == sum(reply.spent.written for reply in found.replies)
    assert found.spent.flops > 0


def test_samples_have_draws_of_their_own_and_problems_too(opened: Opened) -> None:
    task = Letters()
    problems = task.problems("test", 0, 5)
    warm = Sampling(temperature=1.5, seed=4)
    found = ask(opened, task, problems, Asking(samples=3, sampling=warm))
    assert len({reply.text for reply in found.replies}) > 10
    assert [(reply.problem.id, reply.sample) for reply in found.replies[:4]] == [
        ("test-0", 0), ("test-0", 1), ("test-0", 2), ("test-1", 0)
    ]  # fmt: skip
    again = ask(opened, task, problems[2:], Asking(samples=3, sampling=warm, rows=2))
    assert [reply.text for reply in again.replies] == [reply.text for reply in found.replies[6:]]
    same_prompt = [Problem("one", "x"), Problem("two", "x")]
    one, two = ask(opened, task, same_prompt, Asking(sampling=warm)).replies
    assert one.text != two.text


def test_shots_stand_before_each_problem(opened: Opened) -> None:
    task = Letters()
    (problem,) = task.problems("test", 0, 1)
    (reply,) = ask(opened, task, [problem], Asking(shots=2)).replies
    assert reply.text == alone(opened, "train 0 0|\ntrain 1 1|\ntest 0", GREEDY)


@pytest.mark.parametrize("normalise", ["byte", "token", "none"])
def test_options_are_chosen_by_likelihood(opened: Opened, normalise: str, tmp_path: Path) -> None:
    lines = [
        {"question": f"which of {n}?", "choices": ["ab", f"{n}", f"x{n * 7} y"], "answer": n % 3} for n in range(12)
    ]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task: Task = Choice.of("task", "multiple_choice", kind="task", path=str(path), normalise=normalise).build()
    problems = task.problems("test", 0, 12)
    found = ask(opened, task, problems, Asking())
    tokenizer = opened.tokenizer
    assert tokenizer is not None
    chosen = []
    for problem in problems:
        values = {}
        for option in problem.options:
            before, own = [256, *tokenizer.encode(problem.prompt)], tokenizer.encode(f" {option}")
            with torch.no_grad():
                logits = opened.model(torch.tensor([[*before, *own]]))[0].log_softmax(-1)  # type: ignore[operator]
            total = sum(float(logits[len(before) - 1 + place, token]) for place, token in enumerate(own))
            values[option] = total / {"byte": len(option.encode()), "token": len(own), "none": 1}[normalise]
        chosen.append(max(values, key=lambda option: values[option]))
    assert [reply.text for reply in found.replies] == chosen
    assert [reply.score.right for reply in found.replies] == [
        c == p.answer for c, p in zip(chosen, problems, strict=True)
    ]
    assert len(set(chosen)) > 1
    assert found.spent.flops > 0
    assert found.samples == 1


def refused(opened: Opened, task: Task, asking: Asking, problems: list[Problem] | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        ask(opened, task, problems or task.problems("test", 0, 2), asking)
    return str(caught.value)


def test_what_cannot_be_asked_is_said(opened: Opened) -> None:
    assert "no tokenizer" in refused(Opened(opened.model, None, opened.about), Letters(), Asking())
    assert "no chat template" in refused(opened, Letters(), Asking(chat=True))
    assert "leave --samples out" in refused(opened, Letters(("a", "b")), Asking(samples=2))
    assert f"has {CONTEXT + 1} tokens" in refused(opened, Letters(), Asking(), [Problem("long", "x" * CONTEXT)])
    assert "has no options" in refused(
        opened, Letters(), Asking(), [Problem("a", "x", options=("a", "b")), Problem("b", "y")]
    )


def test_a_chat_is_asked_in_the_models_own_template(opened: Opened) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>"
    chatty = Opened(opened.model, opened.tokenizer, Provenance("here", "run", "0", chat_template=template))
    task = Letters()
    problems = task.problems("test", 0, 1)
    (reply,) = ask(chatty, task, problems, Asking(chat=True, tokens=9)).replies
    text = "<user>Answer the question.\ntest 0<answer>"
    tokenizer = chatty.tokenizer
    assert tokenizer is not None
    tokens = list(
        generate(opened.model, tokenizer.encode(text), Sampling(temperature=0), max_new_tokens=9, end=tokenizer.end)
    )
    assert reply.text == tokenizer.decode(tokens)  # no stop string ends it


def test_answers_that_never_came_are_not_counted() -> None:
    assert Answers((), 1, 0.0).spent.flops == 0
