"""Tokens of one tokenizer in place of those of another."""

import torch
from torch import Tensor

from shoestring.data.tokenizer import TextTokenizer


def nearest_tokens(host: TextTokenizer, other: TextTokenizer, vocabulary: int | None = None) -> Tensor:
    """[V] int64: of each token of `host`, that of `other` which is nearest; -1 where none is.

    PM-MinED (prefix match with the least edit distance) of Wu et al. (2024), "Cross-model Control", arXiv:2410.17599: among the
    tokens of which one begins with the other, the edit distance is the difference of their lengths. So: the same bytes; else the
    longest token that this one begins with, or the shortest that begins with this one, whichever is nearer in length; of equals the
    former, and the lower id. End tokens go together; other special tokens have none.

    vocabulary: V; None: what the tokenizer of the host has. Ids beyond have none.
    """
    known: dict[bytes, int] = {}
    longer: dict[bytes, tuple[int, int]] = {}
    for number, own in enumerate(other.token_bytes):
        if not own:
            continue
        known.setdefault(own, number)
        for size in range(1, len(own)):
            longer[own[:size]] = min(longer.get(own[:size], (len(own), number)), (len(own), number))
    found = torch.full((host.vocabulary if vocabulary is None else vocabulary,), -1, dtype=torch.int64)
    for number, own in enumerate(host.token_bytes[: len(found)]):
        near = [(len(own) - size, 0, known[own[:size]]) for size in range(len(own), 0, -1) if own[:size] in known][:1]
        if own in longer:
            length, token = longer[own]
            near.append((length - len(own), 1, token))
        if near:
            found[number] = min(near)[2]
    if host.end < len(found):
        found[host.end] = other.end
    return found
