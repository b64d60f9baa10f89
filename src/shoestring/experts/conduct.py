"""From a corpus and a budget to judged experts: cluster, train seeds, divide the budget, train experts, judge."""

import logging
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shoestring.budget.machine import cache_folder
from shoestring.budget.units import show
from shoestring.config import Choice, tree
from shoestring.data.clusters.clustering import Clustering, characteristic_tokens, cluster
from shoestring.data.dataset import Dataset
from shoestring.data.prepare import prepare
from shoestring.data.subset import document_bounds, write_index
from shoestring.errors import ShoestringError, UsageError
from shoestring.experts import worker
from shoestring.experts.allocation import divided, remaining, scaled, token_ratios
from shoestring.experts.config import resized, size_name, with_vocabulary
from shoestring.experts.folder import Expert, ExpertsFolder
from shoestring.experts.judgement import judge, losses_by_cluster
from shoestring.experts.worker import finished, train_run
from shoestring.train.config import RunConfig
from shoestring.train.execution import preloaded
from shoestring.train.stopping import StopRequest

log = logging.getLogger(__name__)

WORDS, SHORTEST = 8, 4
"""How many words describe a cluster, and their least number of characters."""


@dataclass(frozen=True)
class Conducted:
    """stopped: 'finished' or 'interrupted'.
    signal: what interrupted.
    summary: as in summary.json, empty before the end.
    """

    stopped: str
    signal: int | None
    summary: dict[str, Any]


class _Interrupted(Exception):
    def __init__(self, signal: int) -> None:
        self.signal = signal


def conduct(folder: ExpertsFolder) -> Conducted:
    """Do what is not done yet of what the folder's configuration asks for. Everything decided on the way is kept in the
    folder, so that one that was killed goes on where it was: finished runs are not trained again, and others go on from
    their newest checkpoints.

    The line of work is Branch-Train-Merge (Li et al., 2022, arXiv:2208.03306): branch experts from a seed model, train each on
    its own data without communication, ensemble or average them; on clusters of the corpus as in c-BTM (arXiv:2303.14177) and
    X-ELM (arXiv:2401.10440); of sizes and lengths that follow the difficulty of their data as in HDEE (arXiv:2502.19385).
    The seeds' cost is on the budget here. Raises: UsageError, ShoestringError.
    """
    try:
        return Conducted("finished", None, _Work(folder).all())
    except _Interrupted as stopped:
        return Conducted("interrupted", stopped.signal, {})


class _Work:
    def __init__(self, folder: ExpertsFolder) -> None:
        self.folder = folder
        config = folder.read_config()
        with folder.work("data", "data"):
            self.dataset: Dataset = prepare(config.run.data, cache_folder())
        config = with_vocabulary(config, self.dataset.tokenizer.vocabulary)
        threads = config.run.execution.threads or max(1, torch.get_num_threads() // config.parallel)
        execution = replace(config.run.execution, threads=threads)
        self.config = replace(config, run=replace(config.run, execution=execution))

    def all(self) -> dict[str, Any]:
        clustering = self.clustering()
        seeds = self.seeds()
        self.train(seeds)
        members = self.folder.members() or self.allocate(clustering)
        self.train([(self.folder.experts / m.name, self.expert(m)) for m in members])
        spent = self.folder.spent()
        if self.config.dense is not None:
            self.train([(self.folder.dense, self.config.dense)])
        log.info("judging on held-out text")
        summary = judge(self.folder, self.config, self.dataset, clustering, members, spent)
        self.folder.write_summary(summary)
        return summary

    def clustering(self) -> Clustering:
        """The clusters, found unless they were."""
        if self.folder.clusters.exists():
            found = Clustering.read(self.folder.clusters)
            if found.dataset != self.dataset.fingerprint:
                raise ShoestringError("the corpus or the tokenizer has changed since these experts were begun")
            return found
        config = self.config
        log.info(f"cutting the corpus into {config.count} clusters")
        with self.folder.work("data", "clusters"):
            found = cluster(self.dataset, config.count, config.run.seed, config.embedding, config.clusters)
            self._write_documents(found)
            found.write(self.folder.clusters)
        return found

    def _write_documents(self, clustering: Clustering) -> None:
        """The index of each cluster's documents, held-out ones included where they fill a window."""
        context, nearest = self.config.run.model.context, clustering.nearest(self.dataset.heldout)
        lengths = {
            "train": np.diff(document_bounds(self.dataset.train)),
            "heldout": np.diff(document_bounds(self.dataset.heldout)),
        }
        for number in range(len(clustering)):
            splits = {"train": clustering.members(number), "heldout": np.flatnonzero(nearest == number)}
            tokens = {name: int(lengths[name][documents].sum()) for name, documents in splits.items()}
            if tokens["train"] < context + 1:
                raise UsageError(
                    f"cluster {number} has {tokens['train']} tokens, less than a window: ask for fewer experts"
                )
            if tokens["heldout"] < context + 1:
                del splits["heldout"]
                log.warning(
                    f"cluster {number}: its held-out documents fill no window; its own run reports on all held-out text"
                )
            write_index(self._index(number), self.dataset, splits)

    def _index(self, cluster_number: int) -> Path:
        return self.folder.documents / f"cluster-{cluster_number}.safetensors"

    def seeds(self) -> list[tuple[Path, RunConfig]]:
        """The seed models to train, one of each size: on all documents, at a constant learning rate, for as many tokens."""
        share = self.config.seed_share
        if not share:
            return []
        models = list({size_name(model): model for model in self.config.models()}.values())
        budgets = divided(scaled(self.config.run.budget, share), models, [1.0] * len(models))
        constant = Choice.of("schedule", "constant")
        return [
            (
                self.folder.seeds / size_name(model),
                replace(self.config.run, model=model, budget=budget, schedule=constant),
            )
            for model, budget in zip(models, budgets, strict=True)
        ]

    def allocate(self, clustering: Clustering) -> list[Expert]:
        """Decide which cluster gets which size and how much of what is left."""
        config, models = self.config, self.config.models()
        difficulty = list(config.difficulty) or (
            self._measured_difficulty(clustering) if config.needs_difficulty else []
        )
        order = np.argsort(difficulty, kind="stable").tolist() if difficulty else list(range(config.count))
        budgets = divided(
            remaining(config.run.budget, self.folder.spent()),
            models,
            token_ratios(config.allocate, models, config.spread),
        )
        lengths, words = np.diff(document_bounds(self.dataset.train)), self._words(clustering)
        members = []
        for number, model, budget in zip(order, models, budgets, strict=True):
            documents = clustering.members(number)
            hard = difficulty[number] if difficulty else None
            tokens = int(lengths[documents].sum())
            size = size_name(model)
            members.append(
                Expert(f"expert-{number}", number, size, budget.write(), hard, tokens, len(documents), words[number])
            )
        members.sort(key=lambda member: member.cluster)
        self.folder.write_members(members)
        return members

    def _measured_difficulty(self, clustering: Clustering) -> list[float]:
        smallest = self.folder.seeds / size_name(self.config.models()[0])
        with self.folder.work("evaluate", "difficulty") as ledger:
            return losses_by_cluster(smallest, self.config, self.dataset, clustering, ledger)

    def _words(self, clustering: Clustering) -> list[tuple[str, ...]]:
        tokenizer = self.dataset.tokenizer
        telling = characteristic_tokens(
            self.dataset.train, clustering.labels, len(clustering), tokenizer.vocabulary, 20 * WORDS
        )
        words = [[tokenizer.decode([token]).strip() for token in row.tolist()] for row in telling]
        return [tuple(dict.fromkeys(word for word in row if len(word) >= SHORTEST))[:WORDS] for row in words]

    def expert(self, member: Expert) -> RunConfig:
        """The run of one expert: branched from the seed of its size, on the documents of its cluster alone."""
        run = self.config.run
        begin = str((self.folder.seeds / member.size).absolute()) if self.config.seed_share else ""
        return replace(
            run,
            model=replace(resized(run.model, member.size), base=begin),
            budget=run.budget.parse(member.budget),
            data=replace(run.data, documents=str(self._index(member.cluster).absolute())),
            train=replace(run.train, base_optimizer=bool(begin)),
        )

    def train(self, runs: Sequence[tuple[Path, RunConfig]]) -> None:
        """Have these runs finished. Raises: ShoestringError of the first that fails."""
        left = [(path, config) for path, config in runs if not finished(path)]
        if self.config.parallel > 1 and len(left) > 1:
            _side_by_side(left, self.config.parallel)
            return
        for path, config in left:
            log.info(_what(path, config))
            stopped = train_run(config, path)
            if stopped is not None:
                raise _Interrupted(stopped)


def _what(path: Path, config: RunConfig) -> str:
    budget = ", ".join(show(unit, limit) for unit, limit in config.budget.limits.items())
    return f"{path.parent.name}/{path.name}: {size_name(config.model)}, {budget}"


def _side_by_side(runs: Sequence[tuple[Path, RunConfig]], parallel: int) -> None:
    """Train each in a process of its own, `parallel` at a time. One that fails, or a signal, stops those that run; they keep
    their checkpoints."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([worker.__name__, *preloaded(config.execution for _, config in runs)])
    waiting, running = list(runs), dict[Any, tuple[Path, Any]]()
    failed: list[tuple[Path, int]] = []
    with StopRequest() as stop:
        while running or (waiting and not failed and stop.asked is None):
            while waiting and len(running) < parallel and not failed and stop.asked is None:
                path, config = waiting.pop(0)
                log.info(_what(path, config))
                path.parent.mkdir(parents=True, exist_ok=True)
                process = context.Process(target=worker.work, args=(tree(config), str(path)))
                process.start()
                running[process.sentinel] = (path, process)
            for sentinel in wait(list(running), timeout=0.2):
                path, process = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    failed.append((path, process.exitcode))
            if failed or stop.asked is not None:
                for _, process in running.values():
                    process.terminate()
        if stop.asked is not None:
            raise _Interrupted(stop.asked)
    if failed:
        path, status = failed[0]
        if status > 128:
            raise _Interrupted(status - 128)
        said = Path(f"{path}.log").read_text().strip().splitlines()
        raise ShoestringError(f"{path.name} failed: {said[-1] if said else f'killed by signal {-status}'}")
