"""What the training loop reads: batches one after the other, from a place that a checkpoint can keep."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from shoestring.contract.batch import Batch
from shoestring.data.windows import BatchSource


@runtime_checkable
class Stream(Protocol):
    """Batches in order. What comes next may depend on how far the run is, and on what it heard.

    It is a `BatchSource` too: `batch` gives what it would read from the first weights on, for those who only look.
    """

    def batch(self, start: int, count: int) -> Batch:
        """Sequences start .. start+count-1, as at progress 0; nothing is consumed."""
        ...

    def take(self, start: int, count: int, progress: float) -> Batch:
        """The next `count` sequences. start: how many were taken so far. progress: spent share of the budget."""
        ...

    def hear(self, progress: float, losses: Mapping[str, float]) -> None:
        """Told of each held-out evaluation. losses: nats a token, by domain."""
        ...

    def state(self) -> Any:
        """What a checkpoint keeps beside the number of sequences, as JSON values; None: nothing."""
        ...

    def restore(self, state: Any) -> None:
        """Go on from what `state` gave."""
        ...


class Pure:
    """A `BatchSource` as a `Stream`: sequence i is the same whenever it is read, so there is nothing to keep."""

    def __init__(self, source: BatchSource) -> None:
        self.source = source

    def batch(self, start: int, count: int) -> Batch:
        return self.source.batch(start, count)

    def take(self, start: int, count: int, progress: float) -> Batch:
        return self.source.batch(start, count)

    def hear(self, progress: float, losses: Mapping[str, float]) -> None:
        """Nothing hangs on it."""

    def state(self) -> Any:
        return None

    def restore(self, state: Any) -> None:
        """Nothing was kept."""


class ChangedStream:
    """A stream that changes the batches of another, and keeps nothing of its own."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def batch(self, start: int, count: int) -> Batch:
        return self.stream.batch(start, count)

    def take(self, start: int, count: int, progress: float) -> Batch:
        return self.stream.take(start, count, progress)

    def hear(self, progress: float, losses: Mapping[str, float]) -> None:
        self.stream.hear(progress, losses)

    def state(self) -> Any:
        return self.stream.state()

    def restore(self, state: Any) -> None:
        self.stream.restore(state)


class PartOfStream(ChangedStream):
    """A stream of whose batches a process takes its part. What comes next is as if it took all.

    part: of a batch.
    """

    def __init__(self, stream: Stream, part: Callable[[Batch], Batch]) -> None:
        super().__init__(stream)
        self.part = part

    def batch(self, start: int, count: int) -> Batch:
        return self.part(self.stream.batch(start, count))

    def take(self, start: int, count: int, progress: float) -> Batch:
        return self.part(self.stream.take(start, count, progress))


def stream_of(source: BatchSource) -> Stream:
    """The source itself where it is a stream."""
    return source if isinstance(source, Stream) else Pure(source)
