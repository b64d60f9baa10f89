"""`shoestring evaluate --task`: how many problems of a task models answer rightly, and what an answer takes."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from shoestring.base import open_model
from shoestring.base.accuracy import Accuracy, Difference
from shoestring.base.answers import Answers, Asking, ask
from shoestring.base.interval import CONFIDENCE, Estimate
from shoestring.budget.ledger import EVALUATE, EVALUATION, START, Ledger, peak_memory
from shoestring.budget.units import show, show_seconds
from shoestring.cli.json_output import print_json
from shoestring.cli.screen import Screen
from shoestring.config import Choice, Tree
from shoestring.decode.sampling import Sampling
from shoestring.errors import UsageError
from shoestring.task import SPLITS, Problem, Split, Task

WARM = 0.8
"""The temperature of several answers to a problem, where none is given."""

FLAGS = ("problems", "samples", "split", "seed", "shots", "chat", "temperature", "answer_tokens")
"""Of `evaluate`, those that go with --task."""


def add_task_flags(parser: argparse.ArgumentParser, whole: Any) -> None:
    """What `evaluate` takes to ask questions. whole: the type of a flag, see `cli.arguments`."""
    group = parser.add_argument_group("with --task")
    group.add_argument("--task", metavar="NAME", help="ask problems of this task; --task.OPTION sets its options")
    group.add_argument("--problems", type=whole(1, 10**7), metavar="N", help="how many at most (default 200)")
    group.add_argument("--samples", type=whole(1, 4096), metavar="N", help="answers to each problem (default 1)")
    group.add_argument("--split", choices=SPLITS, help="which problems (default test)")
    group.add_argument("--seed", type=whole(0, 2**62), metavar="N", help="of problems and draws (default 0)")
    group.add_argument(
        "--shots", type=whole(0, 1000), metavar="N", help="problems with their answers before each (default 0)"
    )
    group.add_argument("--chat", action="store_true", default=None, help="ask as a user, by the model's chat template")
    group.add_argument(
        "--temperature", type=float, metavar="T", help=f"of answers (default 0; of several samples {WARM})"
    )
    group.add_argument(
        "--answer-tokens", type=whole(1, 1 << 20), metavar="N", help="of an answer at most (default: the task's)"
    )


def run_task(found: argparse.Namespace, given: Tree) -> int:
    """Ask all places the same problems. given: the other flags, of which --task.OPTION alone are known."""
    options = _options(given)
    task = _task(found.task, options)
    samples = found.samples or 1
    temperature = (WARM if samples > 1 else 0.0) if found.temperature is None else found.temperature
    if samples > 1 and temperature == 0:
        raise UsageError(f"--samples {samples} at --temperature 0 is one answer {samples} times: give one of them")
    try:
        sampling = Sampling(temperature=temperature, seed=found.seed or 0)
    except ValueError as error:
        raise UsageError(f"--temperature: {error}") from None
    asking = Asking(samples, sampling, found.shots or 0, bool(found.chat), found.answer_tokens)
    split: Split = found.split or "test"
    problems = task.problems(split, found.seed or 0, found.problems or 200)
    if not problems:
        raise UsageError(f"{found.task} has no problems in the split '{split}'")
    screen, ledger = Screen(soft_wrap=True, stderr=found.json), Ledger()
    of_each = f", {samples} answers to each" if samples > 1 else ""
    screen.print(f"asked  {len(problems):,} problems of {found.task} ({split}){of_each}")
    rows: list[dict[str, Any]] = []
    measured: list[Answers] = []
    for place in found.places:
        with ledger.clock(START):
            opened = open_model(place, found.dtype)
        with ledger.clock(EVALUATE):
            measured.append(ask(opened, task, problems, asking))
        ledger.charge(measured[-1].spent, EVALUATION)
        ledger.write("evaluate", place=place)
        rows.append(_row(place, opened.about.kind, opened.about.digest, measured[-1]))
        _tell(screen, rows[-1], measured[-1])
        for note in opened.about.notes:
            screen.print(f"  note: {note}")
        del opened  # before the next one is opened
    compared = [
        (place, each.accuracy.over(measured[0].accuracy))
        for place, each in zip(found.places[1:], measured[1:], strict=True)
    ]
    for place, each in compared:
        _tell_difference(screen, place, found.places[0], each)
    if found.json:
        print_json(
            {
                "task": {"name": found.task, **options},
                "split": split,
                "seed": found.seed or 0,
                "shots": asking.shots,
                "chat": asking.chat,
                "temperature": temperature,
                "problems": len(problems),
                "samples": measured[0].samples,
                "confidence": CONFIDENCE,
                "places": rows,
                "differences": [
                    {"place": place, "base": found.places[0], "accuracy": each.estimate, "p_value": each.p_value}
                    for place, each in compared
                ],
            }
        )
    return 0


def check_flags(found: argparse.Namespace) -> None:
    """Refuse flags of one kind of evaluation where the other is asked for. Raises: UsageError."""
    asked = found.task is not None
    for name in ("tokens", "context", "all") if asked else FLAGS:
        if getattr(found, name) is not None and getattr(found, name) is not False:
            flag = "--" + name.replace("_", "-")
            if asked:
                raise UsageError(f"{flag} goes with text that is measured, not with --task: leave it out")
            raise UsageError(f"{flag} goes with --task NAME, which is not given")


def _options(given: Tree) -> Tree:
    """Raises: UsageError."""
    for section in given:
        if section != "task":
            raise UsageError(f"--{section} has no meaning with --task: an option of the task is given as --task.OPTION")
    return dict(given.get("task", {}))


def _task(name: str, options: Mapping[str, Any]) -> Task:
    """Raises: UsageError, naming the flag."""
    try:
        made: Task = Choice.of("task", name, kind="task", **options).build()
    except ValueError as error:  # of options that do not go together
        raise UsageError(f"--task {error}") from None
    return made


def _row(place: str, kind: str, digest: str, found: Answers) -> dict[str, Any]:
    """What `--json` prints of a place."""
    accuracy, count = found.accuracy, len(found.accuracy.right)
    spent = found.spent
    replies = [found.replies[start : start + found.samples] for start in range(0, len(found.replies), found.samples)]
    return {
        "place": place,
        "kind": kind,
        "digest": digest,
        "accuracy": accuracy.estimate,
        "any_right": accuracy.any_right,
        "score": sum(reply.score.value for reply in found.replies) / len(found.replies),
        "seconds": found.seconds,
        "seconds_per_problem": found.seconds / count,
        "flops_per_problem": spent.flops / count,
        "written_per_problem": spent.written / count,
        "cut": found.cut,
        "accounts": {EVALUATION: spent.as_dict()},
        "peak_memory": peak_memory(),
        "answers": [_answer(own[0].problem, own) for own in replies],
    }


def _answer(problem: Problem, replies: Sequence[Any]) -> dict[str, Any]:
    return {
        "id": problem.id,
        "right": sum(reply.score.right for reply in replies),
        "texts": [reply.text for reply in replies],
        "reasons": [reply.score.reason for reply in replies],
    }


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _interval(found: Estimate, sign: str = "") -> str:
    if found.low is None or found.high is None:
        return "too few for an interval"
    return f"{found.low * 100:{sign}.1f} to {found.high * 100:{sign}.1f} %"


def _tell(screen: Screen, row: Mapping[str, Any], found: Answers) -> None:
    accuracy: Accuracy = found.accuracy
    screen.print(f"{row['place']} ({row['kind']})", style="bold")
    count = f"{CONFIDENCE:.0%}, over {len(accuracy.right):,} problems"
    screen.print(f"  {_percent(accuracy.estimate.value)} right   ({_interval(accuracy.estimate)}: {count})")
    if found.samples > 1:
        screen.print(
            f"  {_percent(accuracy.any_right)} of the problems have a right answer among their {found.samples}"
        )
    screen.print(
        f"  a problem takes {show_seconds(row['seconds_per_problem'])}, {show('flops', row['flops_per_problem'])} and "
        f"{row['written_per_problem']:.1f} tokens written; all together {show_seconds(row['seconds'])}"
    )
    if found.cut:
        screen.print(f"  note: {found.cut:,} of {len(found.replies):,} answers were cut at their most tokens")


def _tell_difference(screen: Screen, place: str, base: str, found: Difference) -> None:
    verdict = "a difference is shown" if found.shown else "no difference is shown"
    screen.print(
        f"{place} - {base}: {found.estimate.value * 100:+.1f} points ({_interval(found.estimate, '+')}, paired; "
        f"exact test: p = {found.p_value:.2g}): {verdict}"
    )
