"""The next token of a row, of the logits that a model has for it: the one way for engines and drafters."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shoestring.decode.row import Row
from shoestring.decode.sampling import choose, greedy, penalised


def changed_logits(row: Row, logits: Tensor) -> Tensor:
    """The logits [V] after bias, penalties and the constraint of the row."""
    sampling = row.request.sampling
    if sampling.changes_logits:
        if sampling.repetition_penalty != 1 and not row.asked:
            row.asked.update(row.request.prompt)
        logits = penalised(logits, sampling, row.asked, row.answered)
    mask = None if row.constraint is None else row.constraint.mask()
    return logits if mask is None else logits.masked_fill(~mask, -torch.inf)


def next_token(row: Row, logits: Tensor, skipped: int = 0) -> int:
    """The token that comes next, of changed logits [V]. The draw is that of the row and the place.

    skipped: tokens of the text that `row.tokens` lacks.
    """
    if row.request.sampling.temperature == 0:
        return greedy(logits)
    return choose(logits, row.request.sampling, row.draw(len(row.tokens) + skipped))


def ahead(row: Row, tokens: Sequence[int] = ()) -> Row:
    """A row as if its text had gone on with these tokens; the row itself does not change."""
    made = Row(row.number, row.ticket, row.request, row.sample, list(row.tokens), row.arrived)
    if row.request.sampling.changes_logits:
        made.asked, made.answered = row.asked, row.answered.copy()
    made.constraint = row.constraint and row.constraint.copy()
    for token in tokens:
        put(made, token)
    return made


def put(row: Row, token: int) -> None:
    """Let the text of a row of a drafter go on with this token."""
    row.tokens.append(token)
    row.answered[token] += 1
    if row.constraint is not None:
        row.constraint.take(token)
