"""The latest token ids of each row, for spans that go by them."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from shoestring.contract.cache import PackedPass, Pass
from shoestring.errors import UsageError

NOTHING = -1
"""In place of a token before the first."""


class TokenHistory:
    """The state of a layer behind what goes by token ids: its own, and the latest ids. last: [B, n] int64; None: none yet."""

    rewindable = False

    def __init__(self, inner: Any, last: Tensor | None = None) -> None:
        self.inner, self.last = inner, last
        self.coming: Pass | None = None

    @property
    def nbytes(self) -> int:
        return int(self.inner.nbytes)

    def begin(self, coming: Pass) -> None:
        if isinstance(coming, PackedPass):
            raise UsageError("n-grams cannot be read of rows packed in one: give one sequence a row")
        self.coming = coming
        self.inner.begin(coming)

    def read(self, ids: Tensor, count: int) -> None:
        """Keep the last `count` ids of each row. ids: [B, count + T], those of the pass behind `count` of before."""
        assert self.coming is not None
        new = torch.tensor(self.coming.new, device=ids.device)
        self.last = ids.gather(1, new[:, None] + torch.arange(count, device=ids.device))

    def take(self, rows: Tensor) -> Self:
        return type(self)(self.inner.take(rows), None if self.last is None else self.last[rows])

    def crop(self, lengths: Sequence[int]) -> None:
        raise UsageError("which tokens came before is not kept, so that none can be forgotten: restore a snapshot")

    def snapshot(self) -> Any:
        return None if self.last is None else self.last.clone(), self.inner.snapshot()

    def restore(self, snapshot: Any) -> None:
        last, inner = snapshot
        self.last = None if last is None else last.clone()
        self.inner.restore(inner)
