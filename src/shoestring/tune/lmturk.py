"""Large prompted models as workers that label texts for money, and a small model that learns from their labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Count, Positive, Seed, method
from shoestring.tune.cloze import ClozePattern
from shoestring.tune.cloze_training import ClozeClassifier, asked

Acquisition = Literal["entropy", "margin", "confidence", "random"]
Aggregation = Literal["probabilities", "votes", "best"]


class PromptedWorker(NamedTuple):
    """Who labels: a model, and the pattern by which it is asked. It is as it is: tune it before, by the few labels."""

    model: LanguageModule
    pattern: ClozePattern


@dataclass(frozen=True)
class Annotation:
    """What the workers labelled, and what that took.

    quality: of each worker, its accuracy on the labelled texts. chosen: the numbers of the texts that were labelled, in order.
    labels: [chosen, classes], what the workers together said. queries: answers of a worker. teachers: what those took, the check of
    their quality included. student: what its training and its choices took.
    """

    quality: tuple[float, ...]
    chosen: tuple[int, ...]
    labels: Tensor
    queries: int
    teachers: Charge
    student: Charge


@method(
    "tune",
    kind="few-shot",
    name="lmturk",
    paper="LMTurk: Few-Shot Learners as Crowdsourcing Workers in a Language-Model-as-a-Service Framework, arXiv:2112.07522",
    claim="labels of prompted large models train models that solve the task and are small; active learning asks fewer of them",
    cost="`queries` passes of workers, each over a text; `rounds` trainings of the student, and a pass of it over the texts left",
)
class LMTurk:
    """Have several workers label texts within a number of queries, those first of which the student is the least sure.

    Mengjie Zhao et al., 2022, arXiv:2112.07522.

    With q_k(l | x) what worker k says and a_k its accuracy on the few labelled texts, the label of x is, by

        probabilities   sum_k a_k q_k / sum_k a_k
        votes           sum_k a_k [l = argmax q_k] / sum_k a_k
        best            q_k of the worker of the largest a_k, who alone is asked

    A text costs a query of each worker. In each round as many texts are labelled as the next; the first are drawn at random, the
    later ones are those of the largest entropy of the student, the smallest gap between its two likeliest classes, or the smallest
    probability of the likeliest. Then the student is trained anew, from where it began, on all labels, the few given ones among
    them, on the cross-entropy with the soft labels. Where no worker was ever right, all count the same.

    Different from the paper: its workers are tuned by a soft prompt (here `bbt_rgb` or `pet` may, before); its student is an
    encoder with a classifier, here a causal model that answers a pattern. How a batch of equally unsure texts may be alike is not
    looked at, as there.

    queries: answers of a worker that may be asked for, the check of their quality not among them. rounds: of asking and training.
    acquisition: which texts are asked about. aggregation: as above. steps, batch, lr: of each training of the student. seed: of all
    that is drawn.
    """

    def __init__(
        self,
        workers: Sequence[PromptedWorker],
        student: LanguageModule,
        pattern: ClozePattern,
        *,
        queries: Count = 300,
        rounds: Count = 5,
        acquisition: Acquisition = "entropy",
        aggregation: Aggregation = "probabilities",
        steps: Count = 100,
        batch: Count = 8,
        lr: Positive = 1e-3,
        seed: Seed = 0,
    ) -> None:
        self.classes = len(pattern.words)
        if not workers or any(len(worker.pattern.words) != self.classes for worker in workers):
            raise UsageError("lmturk: give a worker or more, all with a word for each of the student's classes")
        self.workers, self.pattern = list(workers), pattern
        self.queries, self.rounds, self.batch = queries, rounds, batch
        self.acquisition, self.aggregation = acquisition, aggregation
        self.generator = torch.Generator().manual_seed(seed)
        self._student = ClozeClassifier(student, steps=steps, batch=batch, lr=lr, generator=self.generator)

    def fit(self, texts: Sequence[str], labels: Sequence[int], pool: Sequence[str]) -> Annotation:
        """Label texts of the pool and train the student, which is the classifier after it.

        texts, labels: the few that are known. Raises: UsageError where they are none, or the queries do not do for the rounds.
        """
        if not texts or len(texts) != len(labels) or not all(0 <= label < self.classes for label in labels):
            raise UsageError(f"lmturk: give a few texts, each with a label from 0 to {self.classes - 1}")
        truth, spent, quality = torch.tensor(labels), NOTHING, list[float]()
        for worker in self.workers:
            said, took = asked(worker.model, worker.pattern, texts, self.batch)
            quality.append(float((said.argmax(1) == truth).float().mean()))
            spent += took
        crowd = [quality.index(max(quality))] if self.aggregation == "best" else list(range(len(self.workers)))
        affordable = min(self.queries // len(crowd), len(pool))
        if affordable < self.rounds:
            raise UsageError(
                f"lmturk: {self.queries} queries of {len(crowd)} workers label {affordable} of the {len(pool)} texts, and "
                f"{self.rounds} rounds need one each at least"
            )
        known = torch.nn.functional.one_hot(truth, self.classes).float()
        start, chosen, made = self._student.state(), list[int](), list[Tensor]()
        for number in range(self.rounds):
            count = affordable * (number + 1) // self.rounds - len(chosen)
            new = self._next(pool, chosen, count, first=number == 0)
            soft, took = self._labelled([pool[place] for place in new], crowd, quality)
            spent += took
            chosen += new
            made.append(soft)
            self._student.restore(start)
            self._student.train(self.pattern, [*texts, *(pool[place] for place in chosen)], torch.cat([known, *made]))
        used = len(chosen) * len(crowd)
        return Annotation(tuple(quality), tuple(chosen), torch.cat(made), used, spent, self._student.spent)

    def classify(self, texts: Sequence[str]) -> Tensor:
        """[texts, classes]: the probabilities that the student gives them."""
        return self._student.said(self.pattern, texts).softmax(1)

    def _next(self, pool: Sequence[str], chosen: Sequence[int], count: int, *, first: bool) -> list[int]:
        """The numbers of the texts that are labelled next."""
        done = set(chosen)
        left = [place for place in range(len(pool)) if place not in done]
        if first or self.acquisition == "random":
            return [left[place] for place in torch.randperm(len(left), generator=self.generator)[:count].tolist()]
        unsure = uncertainty(self.classify([pool[place] for place in left]), self.acquisition)
        return [left[place] for place in unsure.argsort(descending=True, stable=True)[:count].tolist()]

    def _labelled(self, texts: Sequence[str], crowd: Sequence[int], quality: Sequence[float]) -> tuple[Tensor, Charge]:
        """([texts, classes], what the workers together say; what asking them took)."""
        said, spent = list[Tensor](), NOTHING
        for number in crowd:
            found, took = asked(self.workers[number].model, self.workers[number].pattern, texts, self.batch)
            said.append(found.softmax(1))
            spent += took
        return together(
            torch.stack(said), [quality[number] for number in crowd], votes=self.aggregation == "votes"
        ), spent


def together(said: Tensor, quality: Sequence[float], *, votes: bool) -> Tensor:
    """[texts, classes]: what workers say [workers, texts, classes], as each is good. votes: each has one class to say."""
    weights = torch.tensor(quality) if any(quality) else torch.ones(len(quality))
    if votes:
        said = torch.nn.functional.one_hot(said.argmax(-1), said.shape[-1]).float()
    return (said * (weights / weights.sum())[:, None, None]).sum(0)


def uncertainty(shares: Tensor, by: Acquisition) -> Tensor:
    """[texts]: how unsure a classifier is that gives classes these probabilities [texts, classes]."""
    if by == "entropy":
        return -(shares * shares.clamp_min(1e-12).log()).sum(1)
    best = shares.topk(2, 1).values
    return -(best[:, 0] - best[:, 1]) if by == "margin" else -best[:, 0]
