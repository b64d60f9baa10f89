"""What a model answers to the problems of a task, whether it is right, and what that took.

A problem that is to be answered in writing goes to the engine, many at a time. Of one with options, the model's answer is the
option that it holds likeliest after the question, for its length.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from shoestring.base.accuracy import Accuracy
from shoestring.base.likelihood import TextWindow, batches, log_probabilities
from shoestring.base.opened import Opened
from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import IGNORED
from shoestring.data.chat import Chat
from shoestring.data.tokenizer import TextTokenizer
from shoestring.decode.answer_text import AnswerText
from shoestring.decode.engine import ROWS, Engine, divided
from shoestring.decode.request import Event, Request, Stop
from shoestring.decode.sampling import Sampling
from shoestring.errors import UsageError
from shoestring.task import Problem, Score, Task

GREEDY = Sampling(temperature=0)

CHAT_TOKENS = 256


@dataclass(frozen=True)
class Asking:
    """How problems are put to a model.

    samples: answers to each problem.
    sampling: how their tokens are chosen; each problem has draws of its own, the same for every model.
    shots: problems of the split 'train' that stand before each, with their answers.
    chat: whether each is a user's message, with the task's instruction, in the model's own template; no stop string then ends
        the answer.
    tokens: of an answer at most; None: what the task says, of a chat at least `CHAT_TOKENS`.
    rows: answers that are written at a time.
    """

    samples: int = 1
    sampling: Sampling = GREEDY
    shots: int = 0
    chat: bool = False
    tokens: int | None = None
    rows: int = ROWS


@dataclass(frozen=True)
class Reply:
    """One answer.

    text: up to where a stop string begins.
    stop: why it ended; of one that a stop string ended, or that was chosen among options, the end of the text.
    spent: what it took.
    """

    problem: Problem
    sample: int
    text: str
    score: Score
    stop: Stop
    spent: Charge


@dataclass(frozen=True)
class Answers:
    """All answers of a model: `samples` to each problem, in the order of the problems.

    seconds: by the clock, for all of them.
    """

    replies: tuple[Reply, ...]
    samples: int
    seconds: float

    @property
    def accuracy(self) -> Accuracy:
        """Of the answers."""
        right = np.array([reply.score.right for reply in self.replies]).reshape(-1, self.samples)
        return Accuracy(right.sum(1), self.samples)

    @property
    def spent(self) -> Charge:
        """By all of them."""
        return sum((reply.spent for reply in self.replies), NOTHING)

    @property
    def cut(self) -> int:
        """How many ended where their tokens, or the context, did."""
        return sum(reply.stop in (Stop.LENGTH, Stop.CONTEXT, Stop.ROOM) for reply in self.replies)


def ask(opened: Opened, task: Task, problems: Sequence[Problem], asking: Asking) -> Answers:
    """What a model answers.

    Raises: UsageError where it has no tokenizer or no chat template that is needed, or a problem is longer than its context.
    """
    tokenizer = opened.tokenizer
    if tokenizer is None:
        raise UsageError(f"{opened.about.place} has no tokenizer: text cannot be made its tokens")
    context = opened.model.about.context
    if not asking.chat and any(problem.options for problem in problems):
        if asking.samples > 1:
            raise UsageError("an answer that is chosen by its likelihood is the same each time: leave --samples out")
        found, seconds = _timed(lambda: list(_chosen(opened, tokenizer, task, problems, asking)))
        return Answers(tuple(found), 1, seconds)
    chat = _chat(opened, tokenizer) if asking.chat else None
    shots = _shots(task, asking.shots)
    ends = frozenset({tokenizer.end, *opened.about.values.get("ends", ()), *(chat.ends() if chat else ())})
    most = asking.tokens or (max(task.most_tokens, CHAT_TOKENS) if chat else task.most_tokens)
    requests = list[Request]()
    for problem in problems:
        ids = _ids(tokenizer, chat, task, problem, shots)
        _check_length(problem, len(ids), context)
        sampling = replace(asking.sampling, seed=_seed(asking.sampling.seed, problem))
        requests.append(Request(tuple(ids), sampling, most, ends, asking.samples))
    stops = () if chat else task.stop
    found, seconds = _timed(lambda: _written(opened, tokenizer, task, problems, requests, stops, asking))
    return Answers(tuple(found), asking.samples, seconds)


def _timed(work: Callable[[], list[Reply]]) -> tuple[list[Reply], float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def _check_length(problem: Problem, tokens: int, context: int) -> None:
    if tokens > context:
        raise UsageError(
            f"the problem {problem.id} has {tokens} tokens, and this model reads {context}: ask shorter ones"
        )


def _seed(seed: int, problem: Problem) -> int:
    """Of the draws for a problem."""
    return int.from_bytes(blake2b(f"{seed} {problem.id}".encode(), digest_size=8).digest(), "big") >> 1


def _chat(opened: Opened, tokenizer: TextTokenizer) -> Chat:
    if opened.about.chat_template is None:
        raise UsageError(
            f"{opened.about.place} has no chat template, as models that were tuned to answer have: leave --chat out"
        )
    return Chat(opened.about.chat_template, tokenizer)


def _shots(task: Task, count: int) -> str:
    """Problems with their answers, each followed by a line end."""
    shown = [task.document(each) for each in task.problems("train", 0, count) if each.answer is not None]
    if len(shown) < count:
        raise UsageError(f"there are {len(shown)} problems with answers to show first, fewer than --shots {count}")
    return "".join(text if text.endswith("\n") else f"{text}\n" for text in shown)


def _ids(tokenizer: TextTokenizer, chat: Chat | None, task: Task, problem: Problem, shots: str) -> list[int]:
    """The tokens of a prompt. Before them stands what stands before every text."""
    if chat is not None:
        parts = [task.instruction, shots, problem.prompt, *problem.options]
        return chat.ids([{"role": "user", "content": "\n".join(part.strip() for part in parts if part)}])
    return [_first(tokenizer), *tokenizer.encode(shots + problem.prompt)]


def _first(tokenizer: TextTokenizer) -> int:
    return tokenizer.end if tokenizer.begin is None else tokenizer.begin


def _written(
    opened: Opened,
    tokenizer: TextTokenizer,
    task: Task,
    problems: Sequence[Problem],
    requests: Sequence[Request],
    stops: Sequence[str],
    asking: Asking,
) -> list[Reply]:
    """The answers that the engine writes, in the order of the problems and their samples."""
    longest = max(len(request.prompt) + request.max_new_tokens for request in requests)
    rows = min(asking.rows, len(requests) * asking.samples)
    engine = Engine(opened.model, rows=rows, room=rows * longest)
    texts: dict[tuple[int, int], AnswerText] = {}
    ended: dict[tuple[int, int], Event] = {}
    numbers = [engine.submit(request) for request in requests]
    for number in numbers:
        for sample in range(asking.samples):
            texts[number, sample] = AnswerText(tokenizer.stream(), stops)
    while engine.busy:
        for event in engine.step():
            key = event.number, event.sample
            text = texts[key]
            for written in event.written:
                text.push(written.token)
            if event.stop is not None:
                text.finish()
                ended[key] = event
            elif text.stopped:
                engine.cancel(*key)
    found = list[Reply]()
    for number, problem in zip(numbers, problems, strict=True):
        for sample in range(asking.samples):
            text, event = texts[number, sample], ended[number, sample]
            assert event.stop is not None
            assert event.spent is not None
            stop = Stop.END if text.stopped else event.stop
            score = task.check(problem, text.text)
            found.append(Reply(problem, sample, text.text, score, stop, event.spent.charge))
    return found


def _chosen(
    opened: Opened, tokenizer: TextTokenizer, task: Task, problems: Sequence[Problem], asking: Asking
) -> Iterator[Reply]:
    """The likeliest option of each problem."""
    shots = _shots(task, asking.shots)
    windows = list[TextWindow]()
    for number, problem in enumerate(problems):
        if not problem.options:
            raise UsageError(f"the problem {problem.id} has no options, and others of its task have")
        prompt = [_first(tokenizer), *tokenizer.encode(shots + problem.prompt)]
        for option in problem.options:
            own = tokenizer.encode(f" {option}")
            row, targets = [*prompt, *own], [*[IGNORED] * (len(prompt) - 1), *own]
            _check_length(problem, len(row) - 1, opened.model.about.context)
            windows.append(TextWindow(row[:-1], targets, np.full(len(targets), number)))
    order = sorted(range(len(windows)), key=lambda place: -len(windows[place].targets))
    sums, charges, done = np.zeros(len(windows)), [NOTHING] * len(windows), 0
    for batch in batches([windows[place] for place in order]):
        found, spent = log_probabilities(opened.model, batch, tokenizer.end)
        places = order[done : done + len(batch)]
        done += len(batch)
        for place, total, share in zip(places, found.sum(1).tolist(), divided(spent, [1] * len(batch)), strict=True):
            sums[place], charges[place] = total, share
    at = 0
    for problem in problems:
        count = len(problem.options)
        lengths = [_length(task, option, tokenizer) for option in problem.options]
        best = int(np.argmax(sums[at : at + count] / lengths))
        option = problem.options[best]
        spent = sum(charges[at : at + count], NOTHING)
        yield Reply(problem, 0, option, task.check(problem, option), Stop.END, spent)
        at += count


def _length(task: Task, option: str, tokenizer: TextTokenizer) -> int:
    """What the log-probability of an option is divided by."""
    if task.normalise == "token":
        return max(len(tokenizer.encode(f" {option}")), 1)
    return len(option.encode()) if task.normalise == "byte" else 1
