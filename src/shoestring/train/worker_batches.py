"""One worker's part of the batches."""

from collections.abc import Mapping
from typing import Any

from shoestring.contract.batch import Batch
from shoestring.data.stream import Stream
from shoestring.data.windows import BatchSource


class WorkerBatches:
    """The share of one worker of every batch: equal parts, in the order of the sequences, so that together the workers see
    the batches that one would see."""

    def __init__(self, source: BatchSource, worker: int, workers: int) -> None:
        self.source, self.worker, self.workers = source, worker, workers

    def batch(self, start: int, count: int) -> Batch:
        own = count // self.workers
        return self.source.batch(start + self.worker * own, own)


class WorkerStream:
    """As `WorkerBatches`, of a stream whose batches hang on what it gave before: each worker takes all, and keeps its part."""

    def __init__(self, stream: Stream, worker: int, workers: int) -> None:
        self.stream, self.worker, self.workers = stream, worker, workers

    def _own(self, whole: Batch) -> Batch:
        own = whole.rows // self.workers
        return whole.take(slice(self.worker * own, (self.worker + 1) * own))

    def batch(self, start: int, count: int) -> Batch:
        return self._own(self.stream.batch(start, count))

    def take(self, start: int, count: int, progress: float) -> Batch:
        return self._own(self.stream.take(start, count, progress))

    def hear(self, progress: float, losses: Mapping[str, float]) -> None:
        self.stream.hear(progress, losses)

    def state(self) -> Any:
        return self.stream.state()

    def restore(self, state: Any) -> None:
        self.stream.restore(state)


def part_of_batches(source: BatchSource, worker: int, workers: int) -> BatchSource:
    """The part of one worker of any source, also where that is a stream."""
    if isinstance(source, Stream):
        return WorkerStream(source, worker, workers)
    return WorkerBatches(source, worker, workers)
