"""What the task models of `make models` learn from, and how many problems they answer.

    python bench/task_models.py                 # the share of right answers of both models, task by task
    python bench/task_models.py tasks-0.9m --problems 500
    python bench/task_models.py --corpus tasks.jsonl     # the text alone

The mixture stands in recipes/models/tasks.toml. The models are trained on its split 'train' and asked its split 'test'. Their
loss is of the answers alone: what a question asks cannot be foretold.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from shoestring.base import open_model
from shoestring.base.answers import Asking, ask
from shoestring.config import Choice, Pick, build, read_toml
from shoestring.method import Seed
from shoestring.task.documents import Portion, documents, write_corpus

MIXTURE = Path(__file__).resolve().parent.parent / "recipes" / "models" / "tasks.toml"

LOOK = 64
"""Documents of each task that tell one mixture's text from another's."""


@dataclass(frozen=True)
class Part:
    """documents: at most, no two the same. times: how often each stands in the text. task: with its options."""

    documents: Annotated[int, Interval(ge=1, le=10**7)]
    task: Annotated[Choice, Pick("task", "task")]
    times: Annotated[int, Interval(ge=1, le=100)] = 1

    def portion(self, most: int | None = None) -> Portion:
        """As the corpus takes it."""
        return Portion(self.task.build(), min(self.documents, most or self.documents), self.times)


@dataclass(frozen=True)
class Mixture:
    """seed: of which problems. portions: the tasks."""

    portions: tuple[Part, ...]
    seed: Seed = 0


def mixture(path: Path = MIXTURE) -> Mixture:
    """The mixture that a file describes. Raises: UsageError."""
    return build(Mixture, read_toml(path))


def text_digest(made: Mixture) -> bytes:
    """Of the recipe and of the first texts of each task: a task that is changed makes other models."""
    whole = hashlib.sha256(repr(made).encode())
    for text in documents([part.portion(LOOK) for part in made.portions], made.seed):
        whole.update(text.encode())
    return whole.digest()


def corpus(made: Mixture, path: Path, most: int | None = None) -> int:
    """Write the text to learn from, of each task at most so many documents. Returns how many there are."""
    return write_corpus(path, [part.portion(most) for part in made.portions], made.seed)


def accuracies(place: str, made: Mixture, problems: int, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """By task: the share of right answers to problems of the split 'test', and its interval's ends."""
    opened, found = open_model(place), dict[str, tuple[float, float, float]]()
    for part in made.portions:
        task = part.task.build()
        estimate = ask(opened, task, task.problems("test", seed, problems), Asking()).accuracy.estimate
        assert estimate.low is not None
        assert estimate.high is not None
        found[part.task.name] = (estimate.value, estimate.low, estimate.high)
    return found


def main(words: Sequence[str]) -> int:
    from reference_models import TASK_NAMES, reference_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", help=f"of {', '.join(TASK_NAMES)}, or places of models; default both")
    parser.add_argument("--problems", type=int, default=300, help="of each task (default 300)")
    parser.add_argument("--corpus", type=Path, metavar="PATH", help="write the text to learn from, and nothing else")
    parser.add_argument("--most", type=int, metavar="N", help="with --corpus: documents of each task at most")
    options = parser.parse_args(words)
    if options.corpus:
        print(f"{corpus(mixture(), options.corpus, options.most):,} documents in {options.corpus}")
        return 0
    for name in options.places or TASK_NAMES:
        place = str(reference_model(name)) if name in TASK_NAMES else name
        print(f"{name}: {place}")
        for task, (share, low, high) in accuracies(place, mixture(), options.problems).items():
            within = "" if 0.3 <= share <= 0.8 else "   outside 30 to 80 %"
            print(f"  {task:16} {share:6.1%}  ({low:.1%} to {high:.1%}){within}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
