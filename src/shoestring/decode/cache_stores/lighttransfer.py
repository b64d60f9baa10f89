"""Layers that look at the first and the latest tokens only keep no others."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shoestring.contract.grouped_attention import grouped_attention
from shoestring.contract.model import LanguageModel
from shoestring.decode.text_cache import GrowingLayer, TextCache
from shoestring.method import Count, Fraction, Whole, method


class StreamingLayer(GrowingLayer):
    """All tokens; once the layer is lazy, the first and the latest.

    lazy: whether it is. dropped: tokens that are gone, those after the first `sinks` of the text.
    """

    def __init__(self, sinks: int, latest: int, observed: int) -> None:
        super().__init__()
        self.sinks, self.latest, self.observed = sinks, latest, observed
        self.lazy, self.dropped = False, 0
        self.queries: Tensor | None = None
        self.scale = 1.0

    @property
    def nbytes(self) -> int:
        return super().nbytes + (0 if self.queries is None else self.queries.nbytes)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, scale: float | None = None, window: int | None = None
    ) -> Tensor:
        """As `contract.cache.Attending`."""
        self.grow(keys, values)
        assert self.keys is not None
        assert self.values is not None
        self.scale = queries.shape[3] ** -0.5 if scale is None else scale
        if self.observed:
            both = queries if self.queries is None else torch.cat((self.queries, queries), 2)
            self.queries = both[:, :, -self.observed :].clone()
        own, places = self._positions(queries.shape[2])
        visible = places <= own if window is None else (places <= own) & (places > own - window)
        if self.lazy:
            visible = visible & self._near(own, places)
        return grouped_attention(queries, self.keys, self.values, mask=visible, scale=scale)

    def laziness(self) -> float:
        """The share of what the latest tokens look at that goes to the first tokens and to those just before."""
        assert self.keys is not None
        assert self.queries is not None
        heads, new = self.keys.shape[1], self.queries.shape[2]
        own, places = self._positions(new)
        grouped = self.queries[0].float().unflatten(0, (heads, -1))
        scores = grouped @ self.keys[0].float()[:, None].mT * self.scale
        attention = scores.masked_fill(places > own, -torch.inf).softmax(-1)
        return float((attention * self._near(own, places)).sum(-1).mean())

    def trim(self) -> None:
        """Drop what a lazy layer does not see any more."""
        gone = self.held - self.sinks - self.latest
        if not self.lazy or gone <= 0:
            return
        assert self.keys is not None
        assert self.values is not None
        self.dropped += gone
        self.keys, self.values = (
            torch.cat((one[:, :, : self.sinks], one[:, :, self.sinks + gone :]), 2) for one in (self.keys, self.values)
        )

    def _positions(self, new: int) -> tuple[Tensor, Tensor]:
        """(of the latest `new` tokens [n, 1], of all that are held [S])."""
        assert self.keys is not None
        places = torch.arange(self.held, device=self.keys.device)
        places = torch.where(places < self.sinks, places, places + self.dropped)
        return places[-new:, None], places

    def _near(self, own: Tensor, places: Tensor) -> Tensor:
        return (places < self.sinks) | (own - places <= self.latest)


class StreamingCache(TextCache):
    """Layers of which some become lazy once the prompt is read. count: how many."""

    def __init__(self, layers: Sequence[StreamingLayer], room: int, count: int) -> None:
        super().__init__(layers, 1, room)
        self.count = count

    def allowed(self, prompt: int) -> int:
        return prompt - self.length if self.length < prompt else 1 << 30

    def settle(self, prompt: int) -> None:
        if self.length == prompt:
            layers: list[Any] = self.layers
            for layer in sorted(layers, key=lambda layer: -layer.laziness())[: self.count]:
                layer.lazy = True
            for layer in layers:  # it is decided
                layer.observed, layer.queries = 0, None
        if self.length >= prompt:
            for layer in self.layers:
                layer.trim()


@method(
    "decode",
    kind="cache store",
    name="lighttransfer",
    paper="LightTransfer: Your Long-Context LLM is Secretly a Hybrid Model with Effortless Adaptation, arXiv:2410.13846",
    claim="with half of the layers lazy, up to 2.17 times the throughput at a loss under 1.5 % on LongBench",
    cost="attention of the latest tokens once more, when the prompt is read; lazy layers then hold sinks + latest tokens",
)
class LightTransfer:
    """Have the layers whose latest tokens look most at the first and the latest tokens keep no others.

        laziness of a layer = mean_h,t sum_i A_h[t, i],   over i < sinks and t - i <= latest

    A: attention of the last `observed` tokens t of the prompt. Once that is read, the `share` of the layers that are laziest
    keep and see the first tokens and the latest; the others keep all.

    share: of the layers, how many become lazy. sinks: first tokens that stay. latest: tokens before a token that it sees.
    observed: tokens of the prompt's end that decide.

    The source gives up a layer as soon as the ones after it are read in the prefill, and tunes models for reasoning; here the
    prompt is read by all layers, and no weight changes. No prefix is shared.
    """

    def __init__(self, *, share: Fraction = 0.5, sinks: Whole = 4, latest: Count = 1020, observed: Count = 64) -> None:
        self.share, self.sinks, self.latest, self.observed = share, sinks, latest, observed

    def cache(self, model: LanguageModel, room: int) -> StreamingCache:
        """As `TextStore.cache`."""
        layers = [StreamingLayer(self.sinks, self.latest, self.observed) for _ in range(model.about.layers)]
        return StreamingCache(layers, room, round(self.share * len(layers)))
