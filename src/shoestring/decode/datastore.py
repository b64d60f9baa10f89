"""What a model thought in many texts, and what came next there: keys to look up by, and tokens."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import Inputs
from shoestring.contract.model import LanguageModel
from shoestring.decode.made_files import expect, read_made, write_made
from shoestring.errors import UsageError

NAME = "datastore"
BLOCK = 1 << 16
"""Keys that are compared at a time."""


class Datastore:
    """Entries, in the order of the texts: after entry i of a text comes entry i + 1.

    keys: [N, width] float, the model's last hidden state at a place, as its head takes it.
    tokens: [N] int64, the token that came next.
    texts: [N] int64, the number of the text.
    """

    def __init__(self, keys: Tensor, tokens: Tensor, texts: Tensor) -> None:
        self.keys, self.tokens, self.texts = keys, tokens, texts
        self._norms = keys.float().square().sum(1)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and tokens."""
        return self.keys.nbytes + self.tokens.nbytes + self.texts.nbytes

    def flops(self, queries: int) -> int:
        """Operations of a search for so many queries."""
        return 2 * queries * self.keys.numel()

    def distances(self, query: Tensor, places: Tensor) -> Tensor:
        """[n] float32: the squared distances of one query [width] to the keys at these places [n]."""
        return (self.keys[places].float() - query.float()).square().sum(1)

    def search(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The nearest keys to each of the queries [n, width]: (squared distances [n, count], their places [n, count]), the nearest
        first. Every key is looked at. Fewer where there are fewer."""
        queries, count = queries.float(), min(count, len(self))
        best = torch.full((len(queries), 0), torch.inf)
        where = torch.zeros(len(queries), 0, dtype=torch.int64)
        for start in range(0, len(self), BLOCK):
            keys = self.keys[start : start + BLOCK].float()
            norms = self._norms[start : start + BLOCK]
            found = norms - 2 * queries @ keys.T + queries.square().sum(1, keepdim=True)
            places = torch.arange(start, start + len(keys)).expand(len(queries), -1)
            best, where = torch.cat([best, found], 1), torch.cat([where, places], 1)
            best, order = best.topk(min(count, best.shape[1]), dim=1, largest=False)
            where = where.gather(1, order)
        return best.clamp_min(0), where

    def after(self, place: int, count: int) -> list[int]:
        """The tokens that followed the token of this entry in its text, up to `count`."""
        stop = min(place + 1 + count, len(self))
        same = self.texts[place + 1 : stop] == self.texts[place]
        return [
            token for token, ours in zip(self.tokens[place + 1 : stop].tolist(), same.tolist(), strict=True) if ours
        ]

    def next(self, places: Tensor) -> Tensor:
        """The entries after these [n], of those that have one in their text."""
        following = places[places + 1 < len(self)]
        return (following + 1)[self.texts[following] == self.texts[following + 1]]

    def save(self, path: Path) -> None:
        """Write what `read` reads."""
        write_made(path, NAME, {"keys": self.keys, "tokens": self.tokens, "texts": self.texts})

    @classmethod
    def read(cls, path: Path, model: LanguageModel) -> "Datastore":
        """What a file holds. Raises: UsageError where it does not suit the model."""
        tensors, _ = read_made(path, NAME)
        expect(path, tensors, {"keys": (-1, model.about.width), "tokens": (-1,), "texts": (-1,)})
        keys, tokens, texts = (tensors[name] for name in ("keys", "tokens", "texts"))
        if not len(keys) == len(tokens) == len(texts) or not len(keys):
            raise UsageError(f"{path}: a datastore has as many keys as tokens and texts, and at least one")
        if tokens.dtype != torch.int64 or not 0 <= int(tokens.min()) <= int(tokens.max()) < model.about.vocabulary:
            raise UsageError(f"{path}: it holds tokens that the model does not know")
        return cls(keys, tokens, texts)


def build_datastore(
    model: LanguageModel, texts: Iterable[Sequence[int]], dtype: torch.dtype = torch.float32
) -> tuple[Datastore, Charge]:
    """Read texts (token ids, each up to the context), and keep what the model thought before each token but the first. Returns (the
    datastore, what it took)."""
    keys, tokens, numbers, charge = list[Tensor](), list[Tensor](), list[Tensor](), NOTHING
    for number, text in enumerate(texts):
        if len(text) < 2:
            continue
        with torch.inference_mode():
            reading = model.read(Inputs(torch.tensor([text[:-1]], device=model.device)))
        keys.append(reading.hidden[0].to("cpu", dtype).clone())
        tokens.append(torch.tensor(text[1:]))
        numbers.append(torch.full((len(text) - 1,), number))
        charge += Charge(flops=reading.cost.flops, moved=reading.cost.moved, read=len(text) - 1, calls=1)
    if not keys:
        raise UsageError("a datastore needs a text of two tokens or more")
    return Datastore(torch.cat(keys), torch.cat(tokens), torch.cat(numbers)), charge


def weighted(tokens: Tensor, distances: Tensor, vocabulary: int, temperature: float) -> Tensor:
    """float32 [n, V]: p(w) in proportion to the sum of exp(-d / temperature) of the entries with token w. tokens, distances: [n,
    k]."""
    weights = (-distances / temperature).softmax(-1)
    return torch.zeros(len(tokens), vocabulary).scatter_add_(1, tokens, weights)


def log_mixture(logits: Tensor, other: Tensor, share: float) -> Tensor:
    """log((1 - share) softmax(logits) + share other), float32 [..., V]; other: probabilities."""
    return ((1 - share) * logits.float().softmax(-1) + share * other).clamp_min(1e-30).log()
