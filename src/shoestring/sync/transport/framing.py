"""What the transports over gloo have in common: a message for each worker, framed to travel, checked when it is there."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from shoestring.sync.transport.frame import CorruptFrame, open_frame

GLOO_TAGS = 2**31


def one_for_each(messages: Sequence[Tensor], sizes: Sequence[int] | None, workers: int) -> list[Tensor]:
    """The messages on the CPU; those that are one and the same are copied there once.

    Raises: ValueError for messages, or sizes, that are not one a worker.
    """
    if len(messages) != workers or (sizes is not None and len(sizes) != workers):
        raise ValueError(f"{workers} workers need {workers} messages, and as many sizes where there are any")
    here = {id(message): message.cpu() for message in messages}
    return [here[id(message)] for message in messages]


def framed(messages: Sequence[Tensor], ranks: Iterable[int], seal: Callable[[Tensor], Tensor]) -> dict[int, Tensor]:
    """The frames for these ranks; what goes to several is sealed once."""
    frames: dict[int, Tensor] = {}
    found = {}
    for rank in ranks:
        message = messages[rank]
        if id(message) not in frames:
            frames[id(message)] = seal(message)
        found[rank] = frames[id(message)]
    return found


def opened(frame: Tensor, *, key: bytes, tag: int, sender: int) -> Tensor | None:
    """The payload of a frame, None where it does not pass its check."""
    try:
        return open_frame(frame, key=key, tag=tag, sender=sender)
    except CorruptFrame:
        return None


def reason_of_loss(late: bool, timeout: float) -> str:
    """Why a worker counts as lost. late: the exchange's time has run out."""
    return f"no answer within {timeout:g} s" if late else "the connection to it is closed"
