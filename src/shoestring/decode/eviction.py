"""What an engine remembers of texts so that a policy can choose which of their tokens stay in the cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.contract.cache import KeptShape
from shoestring.decode.cache_policy import CachePolicy, Seen, kept


@dataclass
class Noted:
    """What is remembered of one text in one layer.

    figures: [Hk, S, f] float32, of each place. queries: [H, n, D], of the latest tokens. scale, reach: as `Seen` has them.
    """

    figures: Tensor
    queries: Tensor | None = None
    scale: float = 1.0
    reach: int | None = None

    @property
    def nbytes(self) -> int:
        return self.figures.nbytes + (0 if self.queries is None else self.queries.nbytes)


@dataclass
class Eviction:
    """Asks a policy, and remembers what it wants to know.

    policy: which chooses. shapes: of each layer.
    noted: by text and layer.
    flops: that watching took since they were last asked for.
    """

    policy: CachePolicy
    shapes: Sequence[KeptShape]
    noted: dict[int, list[Noted]] = field(default_factory=dict)
    flops: int = 0

    @property
    def watches(self) -> bool:
        """Whether it wants to see what tokens look at, or ask. Such a policy cannot do with keys that others made."""
        return bool(self.policy.figures or self.policy.window)

    @property
    def nbytes(self) -> int:
        """Bytes of what is remembered."""
        return sum(one.nbytes for layers in self.noted.values() for one in layers)

    def begin(self, row: int, device: torch.device) -> None:
        """Begin a text of which nothing is known."""
        self.noted[row] = [
            Noted(torch.zeros(shape.heads, 0, self.policy.figures, device=device)) for shape in self.shapes
        ]

    def fork(self, row: int, other: int) -> None:
        """Another text that goes on from where one is."""
        # figures are changed in place
        self.noted[other] = [replace(one, figures=one.figures.clone()) for one in self.noted[row]]

    def drop(self, row: int) -> None:
        """Forget a text."""
        del self.noted[row]

    def read(
        self,
        row: int,
        layer: int,
        queries: Tensor,
        places: int,
        first: int,
        scale: float,
        reach: int | None,
        look: Callable[[], Tensor],
    ) -> None:
        """A text was read further in a layer.

        queries: [H, n, D] of the new tokens. places: that the text takes by now, S, those of the new tokens the last.
        first: tokens of the text that were read before. scale, reach: as `Seen` has them.
        look: makes [Hk, G, n, S], what the new tokens look at; it is asked where the policy wants to know.
        """
        one = self.noted[row][layer]
        one.scale, one.reach = scale, reach
        if self.policy.window:
            both = queries if one.queries is None else torch.cat((one.queries, queries), 1)
            one.queries = both[:, -self.policy.window :].clone()
        if not self.policy.figures:
            return
        figures = F.pad(one.figures, (0, 0, 0, places - one.figures.shape[1]))
        self.policy.watch(figures, look(), first)
        one.figures = figures
        self.flops += 2 * queries.numel() * places

    def choose(
        self, row: int, layer: int, keys: Tensor, values: Tensor, positions: Tensor, read: int, count: int
    ) -> Tensor:
        """The places that stay, [Hk, count]; what is remembered of the others is forgotten.

        keys, values: [Hk, S, D]. positions: [Hk, S]. read: tokens of the text that were read.
        """
        one = self.noted[row][layer]
        seen = Seen(
            layer, len(self.shapes), keys, values, positions, read, one.figures, one.queries, one.scale, one.reach
        )
        stays = kept(self.policy, seen, count)
        if self.policy.figures:
            one.figures = one.figures.gather(1, stays[..., None].expand(-1, -1, self.policy.figures))
        return stays


@dataclass(frozen=True)
class Limit:
    """How much of a text is kept.

    most: places that it may take. stride: how many of them are given up at a time, once all are taken.
    whole: the prompt is read whole, and then cut to what is left of `most` after a stride.

    When something is evicted depends on the text alone, and on nothing that is read beside it.
    """

    most: int
    stride: int
    whole: bool = False

    @property
    def kept(self) -> int:
        """Places that stay."""
        return self.most - self.stride

    def due(self, held: int, read: int, prompt: int) -> bool:
        """Whether places have to be given up. held: places taken. read: tokens read. prompt: tokens of the prompt."""
        if self.whole and read <= prompt:
            return read == prompt and held > self.kept
        return held >= self.most

    def allowed(self, held: int, read: int, prompt: int) -> int:
        """Tokens that may be read before places have to be given up, at least 1 where none has to be now."""
        if self.whole and read < prompt:
            return prompt - read
        return self.most - held
