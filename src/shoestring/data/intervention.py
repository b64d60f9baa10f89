"""The interface of a method of kind 'intervention', and a stream in which several experiments change rows, each its own."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from shoestring.contract.batch import IGNORED, Batch, Inputs
from shoestring.data.order import Permutation
from shoestring.data.stream import Stream
from shoestring.errors import ShoestringError, UsageError
from shoestring.json_files import NotJson, parse_json


class Intervention(Protocol):
    """An experiment on what a run reads: texts that are planted in its rows. Made of its options.

    file: of its texts, as JSON lines with 'text'.
    """

    file: str

    def due(self, texts: int, progress: float) -> int:
        """How many plantings there should have been by now, of this many texts in turn. progress: spent share of the budget."""
        ...

    def hear(self, progress: float, losses: Mapping[str, float], planted: int) -> None:
        """Told of each held-out evaluation. losses: nats a token, by domain. planted: how many plantings there were."""
        ...

    def state(self) -> Any:
        """What it remembers, as JSON values."""
        ...

    def restore(self, state: Any) -> None:
        """Go on from what `state` gave."""
        ...


class Intervened:
    """A stream of which some rows begin with a planted text: several experiments in one run, none of which shares a row.

    A planted text takes the first places of a row; what the row held there is not read. If documents are kept apart, the text is
    one of its own. The n-th planting is of text number n modulo their number; the row is drawn by the seed and the number of the
    batch's first sequence. An experiment that finds no free row plants later, so that none is lost.

    experiments: (name, method, texts as token ids, the end token last), in order.
    A batch has 'experiment' among its extra: int64 [B], the experiment's number, -1 where there is none.
    """

    def __init__(
        self, stream: Stream, experiments: Sequence[tuple[str, Intervention, Sequence[np.ndarray]]], seed: int = 0
    ) -> None:
        names = [name for name, _, _ in experiments]
        if len(set(names)) < len(names):
            raise UsageError(f"data.interventions: two are '{max(names, key=names.count)}'")
        self.stream, self.experiments, self.seed = stream, tuple(experiments), seed
        self.planted = dict.fromkeys(names, 0)
        self._digests = {name: _digest(texts) for name, _, texts in experiments}

    def batch(self, start: int, count: int) -> Batch:
        """Those who only look see what there would be without experiments."""
        return self.stream.batch(start, count)

    def take(self, start: int, count: int, progress: float) -> Batch:
        batch = self.stream.take(start, count, progress)
        rows = Permutation(batch.rows, self.seed, start)(np.arange(batch.rows)).tolist()
        found = _copied(batch)
        for number, (name, method, texts) in enumerate(self.experiments):
            missing = method.due(len(texts), progress) - self.planted[name]
            for _ in range(min(max(missing, 0), len(rows))):
                row, text = rows.pop(), texts[self.planted[name] % len(texts)]
                plant(found, row, text)
                found.extra["experiment"][row] = number
                self.planted[name] += 1
        return found

    def hear(self, progress: float, losses: Mapping[str, float]) -> None:
        self.stream.hear(progress, losses)
        for name, method, _ in self.experiments:
            method.hear(progress, losses, self.planted[name])

    def state(self) -> Any:
        own = {
            name: {"planted": self.planted[name], "texts": self._digests[name], "state": method.state()}
            for name, method, _ in self.experiments
        }
        return {"stream": self.stream.state(), "experiments": own}

    def restore(self, state: Any) -> None:
        self.stream.restore(state["stream"])
        for name, method, _ in self.experiments:
            own = state["experiments"].get(name)
            if own is None or own["texts"] != self._digests[name]:
                raise ShoestringError(f"{name}: its texts are not those that the run began with: put them back")
            self.planted[name] = own["planted"]
            method.restore(own["state"])


def _digest(texts: Sequence[np.ndarray]) -> str:
    joined = b"".join(len(text).to_bytes(8, "big") + text.astype(np.int64).tobytes() for text in texts)
    return hashlib.sha256(joined).hexdigest()


def _copied(batch: Batch) -> Batch:
    """A batch that can be written to, with 'experiment' among its extra."""
    inputs = Inputs(*(None if tensor is None else tensor.clone() for tensor in batch.inputs))  # type: ignore[arg-type]
    extra = {**batch.extra, "experiment": torch.full((batch.rows,), -1)}
    return Batch(inputs, batch.targets.clone(), batch.weights, extra)


def plant(batch: Batch, row: int, text: np.ndarray) -> None:
    """Write a text [L] into the first L places of a row, or as many as it has."""
    length = min(len(text), batch.inputs.length)
    tokens = torch.from_numpy(text.astype(np.int64))
    batch.inputs.values[row, :length] = tokens[:length]
    goals = tokens[1 : length + 1]
    batch.targets[row, : len(goals)] = goals
    documents, positions = batch.inputs.documents, batch.inputs.positions
    if documents is None:
        return
    if len(goals) < length:
        batch.targets[row, length - 1] = IGNORED  # what follows is another document
    if positions is not None and length < batch.inputs.length:
        cut = documents[row] == documents[row, length]  # the document that the text ends in is counted from there
        positions[row] = torch.where(cut, positions[row] - positions[row, length], positions[row])
    documents[row] += 1
    documents[row, :length] = 0
    if positions is not None:
        positions[row, :length] = torch.arange(length)


def read_texts(path: str) -> list[str]:
    """The texts of a file of JSON lines. Raises: UsageError where there are none, or it cannot be read."""
    try:
        lines = [line for line in Path(path).expanduser().read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"data.interventions: {path} cannot be read: {error}") from None
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            text = parse_json(line.encode())["text"]
        except (NotJson, KeyError, TypeError):
            text = None
        if not isinstance(text, str) or not text:
            raise UsageError(f"data.interventions: {path}: line {number} is no {json.dumps({'text': '...'})}")
        texts.append(text)
    if not texts:
        raise UsageError(f"data.interventions: {path} holds no text to plant")
    return texts
