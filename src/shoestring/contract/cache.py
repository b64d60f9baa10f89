"""What a model keeps of the tokens it has read, so that decoding reads each token once.

Rows are slots, each with a length of its own. A layer keeps what it needs in a `LayerCache`; a layer without state has none.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from shoestring.contract.batch import Inputs
from shoestring.errors import UsageError


class Pass:
    """The tokens that one pass adds to a cache.

    held: tokens of each row that were there before.
    new: tokens of each row that are added.
    length: T, the places of a row of the pass; those beyond `new` are padding.
    mask: [B, T, T] bool, which of the new tokens a new token sees; None: itself and those before it.
    longest: tokens of the row that holds most.
    end: the first position that no place of the pass has.
    uniform: whether the new tokens of every row stand at the same places, so that plain slices serve.
    """

    def __init__(
        self, held: Sequence[int], new: Sequence[int], length: int, mask: Tensor | None, device: torch.device
    ) -> None:
        self.held, self.new, self.length, self.mask, self.device = list(held), list(new), length, mask, device
        self.longest = max(self.held)
        self.end = self.longest + length
        self.uniform = min(self.held) == self.longest and min(self.new) == length

    @cached_property
    def positions(self) -> Tensor:
        """[B, T] int64: the position of each place; those of padding go on counting."""
        held = torch.tensor(self.held, device=self.device)
        return held[:, None] + torch.arange(self.length, device=self.device)

    @cached_property
    def visible(self) -> Tensor | None:
        """Which keys a query sees where a layer keeps every token at its own place: bool [B or 1, 1, T, S], or None as
        `KeyValues.append` has it. S: the places of the longest row."""
        past = self.longest
        if self.uniform and self.mask is None:
            if not past or self.length == 1:
                return None
            return torch.ones(self.length, past + self.length, dtype=torch.bool, device=self.device).tril(past)[
                None, None
            ]
        places = torch.arange(past + self.length, device=self.device)
        if self.mask is None:
            return (places <= self.positions[:, :, None])[:, None]
        held = torch.tensor(self.held, device=self.device)[:, None, None]
        among = (places - held).clamp(0, self.length - 1).expand(-1, self.length, -1)
        inside = (places >= held) & (places < held + self.length)
        return ((places < held) | (inside & self.mask.gather(2, among)))[:, None]


class Segment(NamedTuple):
    """The new tokens of one row of a cache, in a packed pass.

    row: of the cache.
    start: the place of the pass at which they begin.
    new: how many they are.
    held: tokens of the row that are there from before.
    gone: tokens of the row that were read before and are not there any more, as their keys and values were evicted.
    """

    row: int
    start: int
    new: int
    held: int
    gone: int = 0


class PackedPass:
    """A pass whose new tokens, of however many rows, stand one after the other in a single row: there is no padding.

    segments: the tokens of each row that has any, in order.
    mask: [N, N] bool, which of the new tokens a new token sees; None: of its own segment, itself and those before it.
    given: [1, N] int64, the position of each token, where tokens of a segment do not follow one another, as in a tree.
    end: the first position that no token of the pass has.
    """

    uniform = False

    def __init__(
        self, segments: Sequence[Segment], mask: Tensor | None, device: torch.device, given: Tensor | None = None
    ) -> None:
        self.segments, self.mask, self.device, self.given = tuple(segments), mask, device, given
        self.end = max(segment.gone + segment.held + segment.new for segment in segments)
        self.longest = max(segment.held for segment in segments)

    @cached_property
    def positions(self) -> Tensor:
        """[1, N] int64: the position of each token."""
        if self.given is not None:
            return self.given
        places = [torch.arange(one.new) + (one.gone + one.held) for one in self.segments]
        return torch.cat(places)[None].to(self.device)

    @property
    def visible(self) -> Tensor | None:
        raise UsageError("the rows of a packed pass share no keys: its layers attend by themselves")


def packed_rows(inputs: Inputs) -> Iterator[tuple[int, int, int]]:
    """(row of the cache, place at which its tokens begin, how many) of a packed pass: one row of inputs, whose `documents` are the
    numbers of the cache's rows. Raises: UsageError where it is none."""
    if inputs.rows != 1 or inputs.documents is None:
        raise UsageError("this cache takes packed passes: one row, whose documents say to which row a token belongs")
    numbers, counts = inputs.documents[0].unique_consecutive(return_counts=True)
    start = 0
    for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        yield number, start, count
        start += count


class LayerCache(Protocol):
    """The state of one layer."""

    rewindable: bool
    """Whether `crop` can forget the latest tokens. A recurrent state cannot: take a snapshot before a draft."""

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        ...

    def begin(self, coming: Any) -> None:
        """Make ready for a pass: a `Pass`, or a `PackedPass` in a cache that packs."""
        ...

    def take(self, rows: Tensor) -> Self:
        """A copy with these rows, [n] int64, in this order; a row may be taken twice."""
        ...

    def crop(self, lengths: Sequence[int]) -> None:
        """Forget, of each row, what follows its first `lengths[row]` tokens."""
        ...

    def snapshot(self) -> Any:
        """What `restore` needs to come back to this moment."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Back to the moment of a snapshot."""
        ...


class KeptShape(NamedTuple):
    """What an attention layer keeps of a token: a key and a value of each head."""

    heads: int
    key_width: int
    value_width: int


@runtime_checkable
class Plain(Protocol):
    """The state of a layer that keeps the key and the value of every token, and nothing else: another cache may hold them."""

    @property
    def shape(self) -> KeptShape:
        """Of a token."""
        ...

    @property
    def keys(self) -> Tensor:
        """Of the type and device to keep them in."""
        ...


class KeyValues(LayerCache, Protocol):
    """The state of an attention layer: keys and values."""

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Take in the keys and values [B, Hk, T, D] of the tokens of this pass.

        Returns what the queries attend to: keys and values [B, Hk, S, D], and a mask [B or 1, Hk or 1, T, S] that is True
        where a query sees a key. A mask of None: each sees all, or with T > 1 those up to its own place.
        """
        ...


@runtime_checkable
class Attending(Protocol):
    """The state of an attention layer that computes attention itself, from wherever it keeps keys and values."""

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, scale: float | None = None, window: int | None = None
    ) -> Tensor:
        """Take in the keys and values [B, Hk, T, D] of the tokens of this pass, and answer their queries: [B, H, T, D].

        scale: of the scores; None: one over the square root of the width of a key.
        window: how many of the latest tokens, its own among them, a token sees; None: all.
        """
        ...


@runtime_checkable
class Thinning(Protocol):
    """A cache of one row that has tokens leave between layers, or come back. A model that asks it computes less than all of
    them."""

    def between(self, layer: int, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """What a layer takes in, of what came out of the one before it: hidden states [1, n, width] and their positions [1, n].

        The last token stays the last, unless none goes on: n is then 0.
        """
        ...

    def asked(self, layer: int) -> int:
        """Operations that it took to choose, after a layer."""
        ...


class Cache:
    """The state of all layers. A pass is `begin`, then the layers' own calls in order, then `advance`.

    layers: of each layer, or None where it keeps nothing.
    lengths: tokens held of each row.
    room: the most tokens of a row.
    left_out: of each row, the layers that some of its tokens did not go through, with the place of the first of these; -1 -
        layer stands for the channel mixer of a layer alone.
    """

    def __init__(self, layers: Sequence[Any], rows: int, room: int) -> None:
        self.layers: list[Any] = list(layers)
        self.lengths = [0] * rows
        self.room = room
        self.left_out: dict[int, dict[int, int]] = {}
        self._coming: Pass | PackedPass | None = None

    @property
    def rows(self) -> int:
        """B, the number of slots."""
        return len(self.lengths)

    @property
    def length(self) -> int:
        """Tokens held of the longest row."""
        return max(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(layer.nbytes for layer in self.layers if layer is not None)

    @property
    def rewindable(self) -> bool:
        """Whether every layer can forget its latest tokens by `crop`."""
        return all(layer.rewindable for layer in self.layers if layer is not None)

    def begin(self, inputs: Inputs) -> Pass | PackedPass:
        """Make ready for a pass over `inputs`, one row of them a row of the cache. A cache that packs takes a single row, whose
        `documents` are the numbers of its own rows.

        Raises: UsageError where the rows differ in number, documents are packed, or the tokens have no room.
        """
        if inputs.rows != self.rows:
            raise UsageError(f"a cache of {self.rows} rows cannot take a pass of {inputs.rows}")
        if inputs.documents is not None:
            raise UsageError("packed documents cannot be decoded from a cache: give one sequence a row")
        new = [inputs.length] * self.rows if inputs.lengths is None else inputs.lengths.tolist()
        most = max(length + more for length, more in zip(self.lengths, new, strict=True))
        if most > self.room:
            raise UsageError(f"{most} tokens do not fit in a context of {self.room}")
        self._coming = Pass(self.lengths, new, inputs.length, inputs.mask, inputs.values.device)
        for layer in self.layers:
            if layer is not None:
                layer.begin(self._coming)
        return self._coming

    def through(self, layer: int) -> None:
        """The pass goes through this layer. Raises: UsageError where tokens before it did not: their keys are missing there."""
        for row, _ in self._places():
            if layer in self.left_out.get(row, ()):
                raise UsageError(
                    f"layer {layer} was left out for tokens that are held already, and cannot be read after that: "
                    "layers that are left out stay left out"
                )

    def past(self, layer: int) -> None:
        """The pass leaves this layer out, so that nothing of its tokens is kept there. A cache that has no such layer lacks
        nothing."""
        if layer >= len(self.layers):
            return
        for row, held in self._places():
            self.left_out.setdefault(row, {}).setdefault(layer, held)

    def thinned(self, layer: int, places: Tensor) -> None:
        """The channel mixer of this layer was asked at these places of the pass alone ([B, T] bool): those after them were made
        of hidden states that are not the whole model's."""
        coming = self._coming
        if isinstance(coming, PackedPass):
            parts = [(one.row, one.held, places[0, one.start : one.start + one.new]) for one in coming.segments]
        else:
            assert coming is not None
            rows = enumerate(zip(coming.held, coming.new, strict=True))
            parts = [(row, held, places[row, :new]) for row, (held, new) in rows]
        for row, held, own in parts:
            missing = (~own).nonzero()
            if len(missing):
                self.left_out.setdefault(row, {}).setdefault(-1 - layer, held + int(missing[0]))

    def _places(self) -> list[tuple[int, int]]:
        """(row, tokens held of it) of each row that the pass reads more of."""
        coming = self._coming
        if isinstance(coming, PackedPass):
            return [(segment.row, segment.held) for segment in coming.segments]
        assert coming is not None
        return [(row, held) for row, (held, new) in enumerate(zip(coming.held, coming.new, strict=True)) if new]

    def _filled(self, row: int, length: int) -> None:
        """A row holds so many tokens now: what was left out beyond them is forgotten."""
        kept = {layer: place for layer, place in self.left_out.pop(row, {}).items() if place < length}
        if kept:
            self.left_out[row] = kept

    def advance(self) -> None:
        """Count the tokens of this pass as held, once every layer has taken them in."""
        assert isinstance(self._coming, Pass)
        self.lengths = [length + new for length, new in zip(self.lengths, self._coming.new, strict=True)]
        self._coming = None

    def take(self, rows: Tensor) -> "Cache":
        """A copy with these rows, [n] int64, in this order; a row may be taken twice."""
        made = Cache([None if layer is None else layer.take(rows) for layer in self.layers], len(rows), self.room)
        made.lengths = [self.lengths[row] for row in rows.tolist()]
        made.left_out = {
            place: dict(self.left_out[row]) for place, row in enumerate(rows.tolist()) if row in self.left_out
        }
        return made

    def crop(self, lengths: Sequence[int]) -> None:
        """Forget, of each row, what follows its first `lengths[row]` tokens. Raises: UsageError where a layer cannot."""
        if not self.rewindable:
            raise UsageError("a layer with a recurrent state cannot forget single tokens: restore a snapshot")
        for layer in self.layers:
            if layer is not None:
                layer.crop(lengths)
        self.lengths = [min(had, wanted) for had, wanted in zip(self.lengths, lengths, strict=True)]
        for row, length in enumerate(self.lengths):
            self._filled(row, length)

    def snapshot(self) -> Any:
        """What `restore` needs to come back to this moment."""
        left_out = {row: dict(layers) for row, layers in self.left_out.items()}
        return list(self.lengths), [None if layer is None else layer.snapshot() for layer in self.layers], left_out

    def restore(self, snapshot: Any) -> None:
        """Back to the moment of a snapshot."""
        lengths, states, left_out = snapshot
        self.lengths = list(lengths)
        self.left_out = {row: dict(layers) for row, layers in left_out.items()}
        for layer, state in zip(self.layers, states, strict=True):
            if layer is not None:
                layer.restore(state)
