"""SpaceByte: layers that only the ends of words go through, in a model that reads bytes."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Self

import torch
from annotated_types import Interval
from torch import Tensor

from shoestring.contract.cache import Pass
from shoestring.contract.cost import Shape
from shoestring.contract.model import Notes
from shoestring.method import Whole, method
from shoestring.model.chosen_tokens import ChosenTokens, where_of
from shoestring.model.span import Inner, Span, Where

NOTHING = -1
"""In place of the byte before the first."""


def word_bytes() -> tuple[int, ...]:
    """The bytes that go on with a word: letters and digits of ASCII, and those that continue a character of UTF-8."""
    return tuple(byte for byte in range(256) if (chr(byte).isascii() and chr(byte).isalnum()) or 0x80 <= byte < 0xC0)


class WordTokens(ChosenTokens):
    """The state of a layer that ends of words go through. last: [B], the byte before the next one of each row; None: none yet."""

    def __init__(self, inner: Any, lengths: Sequence[int] | None, last: Tensor | None = None) -> None:
        super().__init__(inner, lengths)
        self.last = last

    def begin(self, coming: Pass) -> None:
        super().begin(coming)
        if self.last is None:
            self.last = torch.full((len(coming.new),), NOTHING, device=coming.device)

    def take(self, rows: Tensor) -> Self:
        made = super().take(rows)
        made.last = None if self.last is None else self.last[rows]
        return made

    def snapshot(self) -> Any:
        return None if self.last is None else self.last.clone(), super().snapshot()

    def restore(self, snapshot: Any) -> None:
        last, below = snapshot
        self.last = None if last is None else last.clone()
        super().restore(below)


@method(
    "model",
    kind="span",
    name="space_byte",
    paper="SpaceByte: Towards Deleting Tokenization from Large Language Modeling, arXiv:2404.14408",
    claim="for a fixed budget of training and inference, better than other models of bytes, and roughly as good as a "
    "Transformer of tokens",
    cost="that of the layers within for a share `capacity` of the bytes while training, and for the ends of words elsewhere",
)
class SpaceByte(Span):
    """The layers within are for bytes that follow the end of a word, and for the first of a text; the others pass by.

    Kevin Slagle, 2024, arXiv:2404.14408.

        chosen_t = x_t is the first, or (x_t is spacelike, and x_{t-1} is not)
        y_t = layers(x)_t where chosen, which see each other alone;  y_t = x_t elsewhere

    Spacelike is a byte that is no letter, no digit and does not continue a character of UTF-8. So a word is thought over once, as
    its end is read, and the layers before and after the span work on single bytes. x: [B, T, width].

    While training, the first ceil(capacity T) such bytes of a row go through; rows that have fewer are filled up, and the fill is
    seen by nobody. Cost: elsewhere it depends on the text, and the layers within for all bytes are what is stated.

    Different from the paper: the layers within are as wide as the others, and read the positions of the bytes.

    capacity: share of the bytes that go through while training, at most. words: the token ids that go on with a word; none given:
    those of bytes, as `--data.tokenizer bytes` numbers them.
    """

    compiles = False
    looks_ahead = True  # not that it does: decoding and evaluation are to choose without the limit, as they do not know the length

    def __init__(
        self,
        width: int,
        *,
        capacity: Annotated[float, Interval(gt=0, le=1)] = 0.25,
        words: tuple[Whole, ...] = (),
    ) -> None:
        super().__init__()
        self.capacity, self.given = capacity, bool(words)
        known = words or word_bytes()
        self.table: Tensor
        table = torch.zeros(max(known) + 2, dtype=torch.bool)
        table[list(known)] = True
        self.register_buffer("table", table, persistent=False)

    def told(self, vocabulary: int) -> None:
        """As `Span.told`."""
        if not self.given and vocabulary > 300:
            raise ValueError(
                f"it goes by bytes, and a vocabulary of {vocabulary} has other tokens: give --data.tokenizer bytes"
            )

    def chosen(self, values: Tensor, before: Tensor, documents: Tensor | None) -> Tensor:
        """bool [B, T]: which of the bytes `values` [B, T] go through. before: [B], the byte before each row."""
        ahead = torch.cat([before[:, None], values[:, :-1]], 1)
        if documents is not None:
            ahead = ahead.clone()
            ahead[:, 1:].masked_fill_(documents[:, 1:] != documents[:, :-1], NOTHING)
        return (ahead == NOTHING) | (~self._word(values) & self._word(ahead))

    def _word(self, values: Tensor) -> Tensor:
        # ids beyond the table, and that of nothing, are looked up at its end, which is False
        last = len(self.table) - 1
        return self.table[torch.where((values < 0) | (values > last), last, values)]

    def count(self, length: int) -> int:
        """Bytes of a row that go through while training."""
        return max(1, math.ceil(self.capacity * length))

    def forward(self, inner: Inner, x: Tensor, where: Where, caches: Sequence[Any]) -> tuple[Tensor, Notes]:
        values = where.values
        assert values is not None
        held = [cache for cache in caches if cache is not None]
        before = held[0].last if held else torch.full((len(values),), NOTHING, device=values.device)
        chosen = self.chosen(values, before, where.documents)
        if held:
            new = torch.tensor(held[0].coming.new, device=x.device)
            chosen &= torch.arange(x.shape[1], device=x.device) < new[:, None]
            latest = torch.cat([before[:, None], values], 1).gather(1, new[:, None])[:, 0]
            for cache in held:
                cache.last = latest
        counts = chosen.sum(1)
        most = self.count(x.shape[1]) if self.training else int(counts.max())
        if not most:
            return x, {}
        counts = counts.clamp_max(most)
        # chosen bytes first, in order; what fills a row up comes last, and is put nowhere
        places = chosen.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        for cache in held:
            cache.go(counts.tolist(), x.device)
        index = places[..., None].expand(-1, -1, x.shape[2])
        own = [None if cache is None else cache.inner for cache in caches]
        inside = x.gather(1, index)
        after, told = inner(inside, where_of(where, places, x.shape[1], counts), own)
        real = torch.arange(most, device=x.device) < counts[:, None]
        return x.scatter(1, index, torch.where(real[..., None], after.to(x.dtype), inside)), told

    def flops(self, inner: Callable[[Shape, bool], int], shape: Shape, inputs: bool) -> int:
        return inner(shape._replace(new=self.count(shape.new)) if shape.backward else shape, inputs)

    def new_cache(self, make: Callable[[], Any]) -> Any:
        made = make()
        return None if made is None else WordTokens(made, None)
