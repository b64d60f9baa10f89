"""An exchange that a transport's thread has in hand, or in its queue."""

from concurrent.futures import CancelledError, Future

from torch import Tensor

from shoestring.sync.transport.base import PeerLost


class Queued:
    """A `Pending` over the future of a thread's work."""

    def __init__(self, future: "Future[list[Tensor | None]]") -> None:
        self._future = future

    def done(self) -> bool:
        return self._future.done()

    def result(self) -> list[Tensor | None]:
        try:
            return self._future.result()
        except CancelledError:
            raise PeerLost(-1, "the transport was closed before this exchange") from None
