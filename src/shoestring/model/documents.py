"""Packed documents, each to a row of its own: for what has to begin anew with a document in a way that no mask says."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def by_document(run: Callable[..., Tensor], documents: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """What `run` makes of each document alone, put together: [B, T, ...].

    documents: [B, T], equal for neighbours of one document.
    tensors: each [B, T, ...]; `run` gets them as [n, L, ...], a document a row, filled up at its end with what later places hold:
        no place may read a later one. Documents go together that are less than twice as long as each other.
    """
    rows, length = documents.shape
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    firsts = begins.flatten().nonzero()[:, 0]  # each row begins a document
    lengths = torch.diff(firsts, append=firsts.new_tensor([rows * length]))
    found: Tensor | None = None
    kinds = torch.frexp(lengths.double()).exponent
    for kind in kinds.unique().tolist():
        own = (kinds == kind).nonzero()[:, 0]
        most = int(lengths[own].max())
        offsets = torch.arange(most, device=documents.device)
        places = firsts[own, None] + offsets
        real = offsets < lengths[own, None]
        safe = places.clamp_max(rows * length - 1)
        made = run(*(tensor.flatten(0, 1)[safe] for tensor in tensors))
        if found is None:
            found = made.new_zeros(rows * length, *made.shape[2:])
        found = found.index_put((places[real],), made[real])
    assert found is not None
    return found.unflatten(0, (rows, length))
