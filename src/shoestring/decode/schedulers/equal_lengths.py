"""Rows of equal length decode together."""

from collections import Counter
from collections.abc import Sequence

from shoestring.decode.grouped_rows import GroupScheduler
from shoestring.decode.row import Row
from shoestring.method import Count, method


@method(
    "decode",
    kind="scheduler",
    name="equal_lengths",
    paper="Batch Speculative Decoding Done Right, arXiv:2510.22876",
    claim="up to 3x the throughput at batch 8 against batch 1, with 95% output equivalence; groups need no realignment",
    cost="rows of other lengths wait for their turn",
)
class EqualLengths(GroupScheduler):
    """EXSPEC: from a pool of rows, those of one length decode together, so that nothing is padded.

    Rows whose drafts were accepted to different extents differ in length. Each pass takes the length that most rows have; a row
    that waited `patience` passes decides the length instead. A row that decoded alone catches up with longer ones and joins them.

    The engine aligns nothing anyway: positions, masks and blocks belong to each row (that is EQSPEC's part, and holds with any
    scheduler). What grouping saves here is the padding of attention to the longest row of a pass.

    patience: passes that a row waits at most before its length is chosen.
    """

    def __init__(self, *, patience: Count = 4) -> None:
        super().__init__()
        self.patience = patience

    def group(self, decoding: Sequence[Row]) -> list[Row]:
        """As `GroupScheduler.group`."""
        if not decoding:
            return []
        eager = max(decoding, key=lambda row: self.waited[row.number])
        if self.waited[eager.number] >= self.patience:
            length = len(eager.tokens)
        else:
            ((length, _),) = Counter(len(row.tokens) for row in decoding).most_common(1)
        return [row for row in decoding if len(row.tokens) == length]
