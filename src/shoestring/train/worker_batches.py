"""One worker's part of the batches."""

from shoestring.contract.batch import Batch
from shoestring.data.windows import BatchSource


class WorkerBatches:
    """The share of one worker of every batch: equal parts, in the order of the sequences, so that together the workers see
    the batches that one would see."""

    def __init__(self, source: BatchSource, worker: int, workers: int) -> None:
        self.source, self.worker, self.workers = source, worker, workers

    def divided(self, part: int, parts: int) -> "WorkerBatches":
        """One of `parts` equal parts of this worker's share."""
        return WorkerBatches(self.source, self.worker * parts + part, self.workers * parts)

    def batch(self, start: int, count: int) -> Batch:
        own = count // self.workers
        return self.source.batch(start + self.worker * own, own)
