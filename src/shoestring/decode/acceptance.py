"""Which drafted tokens stay."""

from typing import NamedTuple, Protocol

from torch import Tensor


class Question(NamedTuple):
    """A drafted token, at the place where the model would choose.

    drafted: the token. chosen: what the model chooses here. logits: float32 [V], of the model, after bias and penalties.
    hidden: [width], of the model at this place. after: [width], of the model once it has read the drafted token.
    """

    drafted: int
    chosen: int
    logits: Tensor
    hidden: Tensor
    after: Tensor


class Acceptance(Protocol):
    """Decides on drafted tokens.

    exact: whether the text is the one that decoding without drafts gives.
    """

    exact: bool

    def accepts(self, question: Question) -> bool:
        """Whether a drafted token stays."""
        ...
