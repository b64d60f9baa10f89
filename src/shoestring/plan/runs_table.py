"""A table of runs: a row a run, a column a figure, from run folders and from CSV files."""

import csv
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoestring.errors import UsageError, did_you_mean
from shoestring.json_files import is_number, read_json

Column = NDArray[np.float64]

COLUMNS: Mapping[str, str] = {
    "parameters": "all parameters, embeddings included",
    "body": "parameters without the embeddings",
    "active": "parameters that a token passes through",
    "average_parameters": "parameters left, averaged over training",
    "trainable": "parameters that training changes",
    "frozen": "parameters that it does not",
    "tokens": "trained on, each pass counted",
    "unique": "tokens seen at least once",
    "epochs": "passes over the corpus",
    "compute": "FLOPs of training",
    "batch": "tokens of a step",
    "steps": "of the optimiser",
    "warmup": "steps of rising learning rate",
    "learning_rate": "peak learning rate",
    "weight_decay": "of the optimiser",
    "loss": "held-out loss, nats per token",
    "seconds": "of training",
    "experts": "of a layer",
    "activation_ratio": "share of a layer's experts that a token passes through",
    "granularity": "how many experts a dense feed-forward layer's width is cut into",
    "members": "models of an ensemble",
    "bits": "of a weight",
    "vocabulary": "tokens of the tokenizer",
    "vocabulary_parameters": "parameters of embedding and head",
    "characters": "of text trained on",
    "workers": "replicas that train",
    "teacher_loss": "held-out loss of the teacher, nats per token",
    "quantised_tokens": "trained on while weights were quantised",
    "full_tokens": "trained on at full precision",
}
"""The columns that laws know, and what they hold. A table may have others."""


@dataclass(frozen=True)
class RunsTable:
    """names: of the runs, for messages. columns: by name, each [runs]; NaN where a run has none."""

    names: tuple[str, ...]
    columns: Mapping[str, Column]

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, float]], names: Sequence[str] | None = None) -> "RunsTable":
        """From rows. names: of the runs, 'run 1' and so on where none are given."""
        keys = list(dict.fromkeys(key for row in rows for key in row))
        columns = {key: np.array([float(row.get(key, math.nan)) for row in rows]) for key in keys}
        return cls(tuple(names) if names else tuple(f"run {n + 1}" for n in range(len(rows))), columns)

    def has(self, name: str) -> bool:
        """Whether there is a column, or what it follows from."""
        return name in self.columns or (name in _DERIVED and all(self.has(part) for part in _DERIVED[name][0]))

    def column(self, name: str) -> Column:
        """A column [runs], derived from others where the table has none of that name. Raises: UsageError where it cannot be."""
        if name in self.columns:
            return self.columns[name]
        if self.has(name):
            parts, derive = _DERIVED[name]
            return derive(*(self.column(part) for part in parts))
        known = [*self.columns, *(key for key in _DERIVED if self.has(key))]
        raise UsageError(f"the runs have no column '{name}': {did_you_mean(name, known)}")

    def with_columns(self, needed: Iterable[str], whose: str) -> "RunsTable":
        """The same runs with these columns made. Raises: UsageError where one is missing, or a run has no number in it."""
        made = dict(self.columns)
        for name in needed:
            if not self.has(name):
                known = COLUMNS.get(name, "")
                raise UsageError(f"{whose} needs the column '{name}'{f' ({known})' if known else ''} of every run")
            made[name] = self.column(name)
            for run, value in zip(self.names, made[name], strict=True):
                if not math.isfinite(value):
                    raise UsageError(f"{whose} needs '{name}' of every run, and {run} has none")
        return RunsTable(self.names, made)

    def select(self, keep: NDArray[np.bool_] | Sequence[int]) -> "RunsTable":
        """Some of the runs, by a mask [runs] or by their places."""
        chosen = np.arange(len(self))[np.asarray(keep)]
        return RunsTable(
            tuple(self.names[at] for at in chosen), {name: column[chosen] for name, column in self.columns.items()}
        )

    def row(self, at: int) -> dict[str, float]:
        """One run, with all columns that follow from its own."""
        names = [*self.columns, *(key for key in _DERIVED if key not in self.columns and self.has(key))]
        return {name: float(self.column(name)[at]) for name in names}

    def adding(self, name: str, column: Column) -> "RunsTable":
        """The same runs with one more column, or another in its place."""
        return RunsTable(self.names, {**self.columns, name: np.asarray(column, dtype=np.float64)})

    def joined(self, other: "RunsTable") -> "RunsTable":
        """These runs and those; what one table lacks is NaN in its rows."""
        keys = list(dict.fromkeys([*self.columns, *other.columns]))
        both = {
            key: np.concatenate([table.columns.get(key, np.full(len(table), math.nan)) for table in (self, other)])
            for key in keys
        }
        return RunsTable((*self.names, *other.names), both)


_DERIVED: dict[str, tuple[tuple[str, ...], Callable[..., Column]]] = {
    "active": (("parameters",), lambda n: n),
    "trainable": (("parameters",), lambda n: n),
    "compute": (("active", "tokens"), lambda n, d: 6 * n * d),
    "unique": (("tokens", "epochs"), lambda d, e: d / np.maximum(e, 1)),
    "steps": (("tokens", "batch"), lambda d, b: d / b),
    "full_tokens": (("tokens", "quantised_tokens"), lambda d, q: d - q),
}
"""What follows from other columns, where a table does not have it: from which, and how."""


def read_csv(
    path: Path,
    columns: Mapping[str, str],
    *,
    where: Mapping[str, str] | None = None,
    name: str = "",
    factors: Mapping[str, float] | None = None,
) -> RunsTable:
    """Read runs from a CSV file with a header.

    columns: ours -> the file's.
    where: only rows in which the file's column holds this text.
    name: the file's column that names a run.
    factors: what a column of ours is multiplied by, for one in other units.
    Raises: UsageError for a file that cannot be read, a column that it lacks, or a cell that is no number.
    """
    try:
        with path.open(newline="", encoding="utf-8") as source:
            lines = list(csv.DictReader(source))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read as a table of runs: {error}") from None
    if not lines:
        raise UsageError(f"{path} has no runs")
    for given in (*columns.values(), *(where or {}), *([name] if name else [])):
        if given not in lines[0]:
            raise UsageError(f"{path} has no column '{given}': {did_you_mean(given, list(lines[0]))}")
    rows, names = [], []
    for number, line in enumerate(lines, start=2):
        if any(line[key] != value for key, value in (where or {}).items()):
            continue
        row = {}
        for ours, theirs in columns.items():
            try:
                row[ours] = (float(line[theirs]) if line[theirs] else math.nan) * (factors or {}).get(ours, 1.0)
            except (TypeError, ValueError):
                raise UsageError(f"{path}, line {number}: {theirs} is {line[theirs]!r}, which is no number") from None
        rows.append(row)
        names.append(line[name] if name else f"line {number}")
    if not rows:
        raise UsageError(f"{path} has no runs with {', '.join(f'{k} = {v}' for k, v in (where or {}).items())}")
    return RunsTable.of(rows, names)


def read_folders(folders: Sequence[Path]) -> RunsTable:
    """Read finished runs from their folders: `config.toml` and `summary.json`. A folder of runs stands for those in it that
    are finished. Raises: UsageError for a folder that is no run or holds none, or a file that cannot be read."""
    rows, names = [], []
    for folder in folders:
        found = (
            [folder] if (folder / "config.toml").is_file() else sorted(p.parent for p in folder.glob("*/config.toml"))
        )
        finished = [run for run in found if (run / "summary.json").is_file()]
        if not finished:
            what = "its run is not finished" if found else "there is no run in it"
            raise UsageError(f"{folder} gives no row of a table of runs: {what}")
        for run in finished:
            rows.append(_row(run))
            names.append(str(run))
    if not rows:
        raise UsageError("no folder of runs was given")
    return RunsTable.of(rows, names)


def text_of(run: Path) -> str:
    """What makes the losses of a run comparable: its corpus, tokenizer and vocabulary, as one line."""
    return text_key(_configuration(run))


def text_key(config: Mapping[str, Any]) -> str:
    """The same of a configuration as plain values."""
    data = config.get("data", {})
    sources = data.get("source") or ()  # tables in order, or by name as flags give them
    each = sources.values() if isinstance(sources, Mapping) else sources
    corpora = sorted(str(one.get("corpus", "")) for one in each) or [str(data.get("corpus", ""))]
    vocabulary = config.get("model", {}).get("vocabulary", "")
    return f"{'+'.join(corpora)} {data.get('tokenizer', '')} {vocabulary}"


def kind_of(text: str) -> tuple[str, str]:
    """(tokenizer, vocabulary) of a text as `text_key` names it: runs on other text of one kind are alike in what suits them."""
    _, tokenizer, vocabulary = text.rsplit(" ", 2)
    return tokenizer, vocabulary


def corpus_of(text: str) -> str:
    """The corpus of a text as `text_key` names it."""
    return text.rsplit(" ", 2)[0]


def optimizer_of(run: Path) -> str:
    """The name of a run's optimiser, '' where its configuration has none."""
    return str(_configuration(run).get("optim", {}).get("name", ""))


def _configuration(run: Path) -> dict[str, Any]:
    try:
        return tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{run}/config.toml cannot be read: {error}") from None


def _row(run: Path) -> dict[str, float]:
    """A finished run, from its configuration and summary; what they do not hold is left out."""
    config = _configuration(run)
    summary = read_json(run / "summary.json", dict, "the summary of a run")
    found: dict[str, float] = {}
    for ours, theirs in _SUMMARY.items():
        if is_number(summary.get(theirs)):
            found[ours] = float(summary[theirs])
    for ours, (section, key) in _CONFIGURATION.items():
        value = config.get(section, {}).get(key)
        if is_number(value):
            found[ours] = float(value)
    if found.get("steps"):
        found["batch"] = found.get("tokens", math.nan) / found["steps"]
    return found


_SUMMARY = {
    "parameters": "parameters",
    "tokens": "tokens",
    "steps": "steps",
    "seconds": "seconds",
    "compute": "flops",
    "loss": "heldout_loss",
}
"""Our columns -> figures of summary.json."""

_CONFIGURATION = {
    "vocabulary": ("model", "vocabulary"),
    "learning_rate": ("optim", "lr"),
    "weight_decay": ("optim", "weight_decay"),
}
"""Our columns -> section and key of config.toml."""
