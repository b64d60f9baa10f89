"""Attention whose distances are never larger than those a model was trained on."""

from collections.abc import Iterator

import torch
from torch import Tensor

from shoestring.contract.attention_rule import AttentionRule, AttentionSizes, RuledLayer, Turn
from shoestring.contract.cost import Shape
from shoestring.errors import UsageError


class DualChunk(AttentionRule):
    """Attention with remapped positions; see `surgery.edits.dual_chunk`.

    trained: tokens of a text that the model was trained on. chunk: the most that a distance may be, and one. local: tokens into a
    chunk up to which distances to the chunk before are exact. turn: what turns queries and keys.
    """

    fused = False

    def __init__(self, turn: Turn, *, trained: int, chunk: int, local: int) -> None:
        super().__init__()
        self.turn, self.trained, self.chunk, self.local = turn, trained, chunk, local
        self.size = chunk - local

    def extra_repr(self) -> str:
        return f"chunk={self.chunk}, local={self.local}"

    def temperature(self, positions: Tensor) -> Tensor:
        """[n]: by what the scores of a token are multiplied, that stands at such a position."""
        grown = (positions + 1).float() / self.trained
        return (0.1 * grown.clamp_min(1).log() + 1).square()

    def mapped(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Keys [B, Hk, n, D], turned by their positions in the chunks."""
        return self.turned(keys, positions % self.size - positions)

    def turned(self, x: Tensor, by: Tensor) -> Tensor:
        """x [B, h, n, D] turned further by so many positions [n]."""
        cos, sin = self.turn(by)
        first, second = x.float().chunk(2, -1)
        return (x.float() * cos + torch.cat((-second, first), -1) * sin).to(x.dtype)

    def answer(self, queries: Tensor, keys: Tensor, values: Tensor, first: int, scale: float | None) -> Tensor:
        """[B, H, T, D]: queries of the tokens from `first` on, the last of those of `keys` [B, Hk, S, D], which are mapped."""
        scale = queries.shape[3] ** -0.5 if scale is None else scale
        found = []
        for start, stop in self.pieces(first, queries.shape[2]):
            at = torch.arange(start, stop, device=queries.device)
            asked = queries[:, :, start - first : stop - first]
            inside, here = at % self.size, start // self.size * self.size
            before, most = max(here - self.size, 0), self.chunk - 1
            targets = (inside + self.size).clamp_max(most), torch.full_like(at, min(2 * self.size - 1, most))
            # the chunks far before, the one before, and the own one
            spans = (0, before, targets[1]), (before, here, targets[0]), (here, stop, inside)
            scores = []
            for low, high, target in spans:
                if low < high:
                    each = self.turned(asked, target - at).unflatten(1, (keys.shape[1], -1))
                    scores.append((each @ keys[:, :, None, low:high].mT).float())
            whole = torch.cat(scores, -1) * (scale * self.temperature(at)[:, None])
            hidden = torch.arange(stop, device=at.device) > at[:, None]
            weights = whole.masked_fill(hidden, -torch.inf).softmax(-1).to(values.dtype)
            found.append((weights @ values[:, :, None, :stop]).flatten(1, 2))
        return torch.cat(found, 2)

    def pieces(self, first: int, new: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of the parts of `new` tokens from `first` on that lie in a chunk each."""
        start = first
        while start < first + new:
            stop = min(start // self.size * self.size + self.size, first + new)
            yield start, stop
            start = stop

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scale: float | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """As `AttentionRule.attend`. Raises: UsageError where a row holds more than one text."""
        places = torch.arange(keys.shape[2], device=keys.device)
        if visible is not None and bool((visible != (places <= places[:, None])).any()):
            raise UsageError("dual_chunk reads one text a row: its positions are counted from the start of the row")
        return self.answer(queries, self.mapped(keys, places), values, 0, scale)

    def new_layer(self) -> "MappedLayer":
        """As `AttentionRule.new_layer`."""
        return MappedLayer(self)

    def pairs(self, shape: Shape, sizes: AttentionSizes) -> int:
        """As `AttentionRule.pairs`."""
        return sizes.heads * sum((stop - start) * stop for start, stop in self.pieces(shape.past, shape.new))


class MappedLayer(RuledLayer):
    """All keys and values of one text, [1, Hk, S, D], keys turned by their positions in chunks."""

    def __init__(self, rule: DualChunk) -> None:
        self.rule = rule
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in (self.keys, self.values) if one is not None)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, scale: float | None = None, window: int | None = None
    ) -> Tensor:
        """As `contract.cache.Attending`."""
        if window is not None:
            raise UsageError("a layer that sees a window of the context has no rule beside it")
        mapped = self.rule.mapped(keys, torch.arange(self.first, self.first + keys.shape[2], device=keys.device))
        self.keys = mapped if self.keys is None else torch.cat((self.keys, mapped), 2)
        self.values = values if self.values is None else torch.cat((self.values, values), 2)
        return self.rule.answer(queries, self.keys, self.values, self.first, scale)
