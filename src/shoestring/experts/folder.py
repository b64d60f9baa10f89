"""The files of a set of experts: what was decided, the run folders, and what all of it cost."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pydantic

from shoestring import atomic
from shoestring.budget.ledger import Ledger, Totals, read_ledger
from shoestring.config import build, read_toml, to_toml
from shoestring.errors import ShoestringError, UsageError
from shoestring.experts.config import ExpertsConfig
from shoestring.train.origin import absolute
from shoestring.train.work_folder import Kind, held

JUDGING = "judge"
"""The event of ledger lines that are no part of training: they count in no budget."""


EXPERTS = Kind(begins_with="experts.toml")


@dataclass(frozen=True)
class Expert:
    """One expert as it was decided.

    cluster: its number.
    size: of its model.
    budget: of its run.
    difficulty: of its cluster, where anything hung on it.
    tokens, documents: of its cluster.
    words: that tell the cluster from the others.
    """

    name: str
    cluster: int
    size: str
    budget: str
    difficulty: float | None
    tokens: int
    documents: int
    words: tuple[str, ...]


class ExpertsFolder:
    """RUN/experts.toml, clusters.safetensors, documents/, seeds/, allocation.json, experts/, dense/, ledger.jsonl (of what is
    done between the runs), summary.json. Each of seeds/SIZE, experts/NAME and dense is an ordinary run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "experts.toml"
        self.clusters = path / "clusters.safetensors"
        self.documents = path / "documents"
        self.seeds = path / "seeds"
        self.experts = path / "experts"
        self.dense = path / "dense"
        self.allocation = path / "allocation.json"
        self.ledger = path / "ledger.jsonl"

    @classmethod
    @contextmanager
    def create(cls, path: Path, config: ExpertsConfig) -> Iterator["ExpertsFolder"]:
        """A new one, which this process alone works in. Raises: UsageError where `path` holds something already."""
        with EXPERTS.created(path):
            folder = cls(path)
            atomic.write_text(folder.recipe, to_toml(replace(config, run=absolute(config.run))))
            yield folder

    @contextmanager
    def held(self) -> Iterator[None]:
        """While this process alone works here. Raises: UsageError where another one does."""
        with held(self.path):
            yield

    @classmethod
    def open(cls, path: Path) -> "ExpertsFolder":
        """One that was begun. Raises: UsageError when `path` is not one."""
        folder = cls(path)
        if not EXPERTS.begun(path):
            raise UsageError(f"{path} holds no experts: it has no {folder.recipe.name}")
        return folder

    def read_config(self) -> ExpertsConfig:
        return build(ExpertsConfig, read_toml(self.recipe))

    def write_members(self, members: list[Expert]) -> None:
        atomic.write_text(self.allocation, json.dumps([asdict(member) for member in members], indent=1) + "\n")

    def members(self) -> list[Expert]:
        """The experts as they were decided; none before they are. Raises: ShoestringError where the file is damaged."""
        if not self.allocation.exists():
            return []
        try:
            return pydantic.TypeAdapter(list[Expert]).validate_json(self.allocation.read_bytes())
        except pydantic.ValidationError as error:
            raise ShoestringError(f"{self.allocation} is damaged: {error.errors()[0]['msg']}") from None

    def write_summary(self, content: dict[str, Any]) -> None:
        atomic.write_text(self.path / "summary.json", json.dumps(content, indent=1) + "\n")

    @contextmanager
    def work(self, cause: str, event: str) -> Iterator[Ledger]:
        """The ledger for work between the runs: its time under `cause`, one line named `event` at the end. No time between
        such works is on it, as that of the runs is on theirs."""
        ledger = Ledger(self.ledger)
        try:
            with ledger.clock(cause):
                yield ledger
            ledger.write(event)
        finally:
            ledger.close()

    def spent(self) -> Totals:
        """What training took: the sum over the ledgers of clustering, seeds and experts. The dense model and the judging of
        held-out text are apart."""
        totals = Totals()
        runs = sorted([*self.seeds.glob("*/ledger.jsonl"), *self.experts.glob("*/ledger.jsonl")])
        for path in (self.ledger, *runs):
            for line in read_ledger(path):
                if line.get("event") != JUDGING:
                    totals = totals.plus(line)
        return totals
