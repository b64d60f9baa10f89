"""Ways to decode, and the bench that times them on the same prompts."""

import gc
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from shoestring.base.likelihood import TextWindow, batches, log_probabilities
from shoestring.base.open_model import open_model
from shoestring.base.opened import Opened
from shoestring.budget.charge import NOTHING
from shoestring.compare.outcome import ArmOutcome
from shoestring.compare.rounds import Done, interleaved
from shoestring.config import Choice, Pick
from shoestring.contract.batch import IGNORED
from shoestring.contract.model import LanguageModel
from shoestring.decode.cache_budget import CacheConfig
from shoestring.decode.engine import TOKENS, Engine
from shoestring.decode.request import Answer, Request, Stop
from shoestring.decode.sampling import Sampling
from shoestring.errors import UsageError
from shoestring.method import Count

SCHEDULER = Pick("decode", "scheduler", default="first_come")
ACCEPTANCE = Pick("decode", "acceptance", default="exact")
DRAFTER = Pick("decode", "drafter")
DEPTH = Pick("decode", "depth")
MIXTURE = Pick("decode", "mixture")
GREEDY = Sampling(temperature=0)


@dataclass(frozen=True)
class DecodeConfig:
    """A way to decode.

    place: the model, the same for all arms.
    drafter: who proposes tokens; left out: nobody.
    draft: the place of its model, or the file that was made for it, where it needs one.
    acceptance: which drafted tokens stay. judge: the file that was made for it, where it needs one.
    depth: which layers tokens go through; left out: all. routers: the file that was made for it, where it needs one.
    mixture: what the probabilities are mixed with; left out: nothing. datastore: the file that was made for it.
    scheduler: who reads in the next pass.
    sampling: how tokens are chosen; the seed is that of the comparison.
    rows: prompts of an item, which are answered together; the same for all arms.
    tokens: places of a pass at most.
    max_new_tokens: of an answer, the same for all arms.
    cache: how much of what is read is kept, and how.
    """

    place: str
    drafter: Annotated[Choice, DRAFTER] | None = None
    draft: str | None = None
    acceptance: Annotated[Choice, ACCEPTANCE] = field(default_factory=ACCEPTANCE.choice)
    judge: str | None = None
    depth: Annotated[Choice, DEPTH] | None = None
    routers: str | None = None
    mixture: Annotated[Choice, MIXTURE] | None = None
    datastore: str | None = None
    scheduler: Annotated[Choice, SCHEDULER] = field(default_factory=SCHEDULER.choice)
    sampling: Sampling = GREEDY
    rows: Count = 1
    tokens: Count = TOKENS
    max_new_tokens: Count = 64
    cache: CacheConfig = field(default_factory=CacheConfig)


PLACES = {"drafter": "draft", "acceptance": "judge", "depth": "routers", "mixture": "datastore"}
"""Where an arm says what a method of each kind needs."""

SHARED = ("place", "rows", "max_new_tokens")
"""What all arms must have in common, else the items are not the same."""


def check_arms(arms: Mapping[str, DecodeConfig]) -> None:
    """Raises: UsageError where arms differ in what makes the items."""
    (base, first), *others = arms.items()
    for name, config in others:
        for key in SHARED:
            if getattr(config, key) != getattr(first, key):
                raise UsageError(f"decode.{key} is not the same in {name} and {base}: no text could be compared")


class Decoding:
    """Prompts that an engine is about to answer.

    engine: which has been asked. prompts: ids. judge: a model that tells how likely the answers are; None: nobody does.
    filler: any token, for what is beyond a row's end.
    """

    def __init__(
        self, engine: Engine, prompts: Sequence[Sequence[int]], judge: LanguageModel | None, filler: int
    ) -> None:
        self.engine, self.prompts, self.judge, self.filler = engine, prompts, judge, filler
        self.answers: list[Answer] = []

    def do(self) -> None:
        """As `PreparedItem.do`."""
        self.answers = list(self.engine.run())

    def done(self) -> Done:
        """As `PreparedItem.done`."""
        ordered = sorted(self.answers, key=lambda answer: answer.number)
        whole = blake2b(repr([answer.tokens for answer in ordered]).encode(), digest_size=8)
        tokens = sum(len(answer.tokens) + (answer.stop is Stop.END) for answer in ordered)
        spent = sum((answer.spent.charge for answer in ordered), NOTHING)
        figures = {} if self.judge is None else {"loss": self._loss(self.judge, ordered)}
        return Done(tokens, whole.hexdigest(), spent, figures)

    @torch.no_grad()
    def _loss(self, judge: LanguageModel, answers: Sequence[Answer]) -> float:
        """Nats a token of what was written, by a model that reads it whole; 0 where nothing was."""
        windows = list[TextWindow]()
        for prompt, answer in zip(self.prompts, answers, strict=True):
            row = [*prompt, *answer.tokens]
            targets = [*[IGNORED] * (len(prompt) - 1), *answer.tokens]
            if answer.tokens:
                windows.append(TextWindow(row[:-1], targets, np.zeros(len(targets), dtype=np.int64)))
        if not windows:
            return 0.0
        windows.sort(key=lambda window: -len(window.inputs))
        total = sum(float(log_probabilities(judge, batch, self.filler)[0].sum()) for batch in batches(windows))
        return -total / sum(len(answer.tokens) for answer in answers)


class Decoders:
    """Times arms on prompts, item by item in turns.

    Each item is done by a new engine, so that nothing that was read before helps.

    arms: by name. prompts: texts, at least one.
    likelihood: whether to tell how likely the model holds what each arm wrote ('loss', nats a token), off the clock.
    Raises: UsageError where the model has no tokenizer, a prompt is too long, or an arm lacks what it needs.
    """

    def __init__(self, arms: Mapping[str, DecodeConfig], prompts: Sequence[str], *, likelihood: bool = False) -> None:
        check_arms(arms)
        self.arms, self.likelihood = dict(arms), likelihood
        first = next(iter(arms.values()))
        self._places: dict[str, Opened] = {}
        opened = self._opened(first.place)
        self.model = opened.model
        tokenizer = opened.tokenizer
        if tokenizer is None:
            raise UsageError(f"{first.place} has no tokenizer: text cannot be made its tokens")
        begin = tokenizer.end if tokenizer.begin is None else tokenizer.begin
        self._ends = frozenset({tokenizer.end, *opened.about.values.get("ends", ())})
        ids = [[begin, *tokenizer.encode(text)] for text in prompts]
        context = self.model.about.context
        for number, row in enumerate(ids, start=1):
            if len(row) + first.max_new_tokens > context:
                raise UsageError(
                    f"prompt {number} has {len(row)} tokens; with {first.max_new_tokens} more they exceed the context, {context}"
                )
        self.groups = [ids[start : start + first.rows] for start in range(0, len(ids), first.rows)]
        self._filler = tokenizer.end
        for name in arms:  # what is missing is said before anything is timed
            self._engine(name, self.groups[0])
        self._warm = False

    @property
    def items(self) -> int:
        """Of a round."""
        return len(self.groups)

    def __call__(self, arms: Sequence[str], seed: int) -> list[ArmOutcome]:
        """As `Bench`."""
        gc.freeze()  # what is there stays, so that looking for garbage takes no time
        try:
            if not self._warm:  # what is done for the first time takes longer
                for arm in arms:
                    self._prepared(arm, 0, seed).do()
                self._warm = True
            return interleaved(arms, self.items, seed, lambda arm, item: self._prepared(arm, item, seed))
        finally:
            gc.unfreeze()

    def _prepared(self, arm: str, item: int, seed: int) -> "Decoding":
        config, group = self.arms[arm], self.groups[item]
        engine = self._engine(arm, group)
        for row in group:
            sampling = replace(config.sampling, seed=seed)
            engine.submit(Request(tuple(row), sampling, config.max_new_tokens, self._ends))
        gc.collect()  # what the last one left is not this one's to clear
        return Decoding(engine, group, self.model if self.likelihood else None, self._filler)

    def _engine(self, arm: str, group: Sequence[Sequence[int]]) -> Engine:
        config = self.arms[arm]
        drafter = None if config.drafter is None else self._made(arm, config.drafter, config.draft)
        depth = None if config.depth is None else self._made(arm, config.depth, config.routers)
        mixture = None if config.mixture is None else self._made(arm, config.mixture, config.datastore)
        room = sum(len(row) + config.max_new_tokens + 64 for row in group)
        return Engine(
            self.model,
            rows=len(group),
            tokens=config.tokens,
            scheduler=self._made(arm, config.scheduler, None),
            drafter=drafter,
            depth=depth,
            mixture=mixture,
            acceptance=self._made(arm, config.acceptance, config.judge),
            room=room,
            cache=config.cache,
        )

    def _made(self, arm: str, choice: Choice, place: str | None) -> Any:
        """A method of the engine, with what it needs beside its options: the model, a draft model, or a file."""
        given = list[Any]()
        for name, parameter in inspect.signature(choice.card.target).parameters.items():
            if parameter.kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
                continue
            if name == "target":
                given.append(self.model)
            elif place is None:
                raise UsageError(
                    f"{arm}: the {choice.kind} '{choice.name}' needs a place: give decode.{PLACES[choice.kind]}"
                )
            else:
                given.append(self._opened(place).model if name == "draft" else Path(place))
        return choice.build(*given)

    def _opened(self, place: str) -> Opened:
        if place not in self._places:
            self._places[place] = open_model(place)
        return self._places[place]
