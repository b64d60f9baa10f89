"""The caches of several rows as one, for a pass that reads all of them in one native call."""

from collections.abc import Sequence
from typing import NoReturn

from torch import Tensor

from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Cache, PackedPass, Segment, packed_rows
from shoestring.errors import UsageError
from shoestring.kernels.attention import BlockRows, BlockSpan, LayersApart
from shoestring.kernels.decoder import CachePlaces
from shoestring.model.cache import ContiguousCache


class JoinedCache(Cache):
    """Caches of one row each. It takes packed passes: one row of inputs, whose `documents` are the places of the caches.

    Layers cannot be asked one by one: `Transformer.joined` makes it where the native call takes all. It is for one pass.
    """

    def __init__(self, caches: Sequence[ContiguousCache]) -> None:
        super().__init__([], len(caches), max(cache.room for cache in caches))
        self._caches = list(caches)
        self._segments: list[Segment] = []

    def begin(self, inputs: Inputs) -> PackedPass:
        """Make ready for a packed pass. Raises: UsageError where it is none, and as each cache does."""
        for number, start, count in packed_rows(inputs):
            cache = self._caches[number]
            self._segments.append(Segment(number, start, count, cache.length))
            cache.begin(Inputs(inputs.values[:, start : start + count]))
        self._coming = PackedPass(self._segments, None, inputs.values.device)
        return self._coming

    def places(self) -> CachePlaces:
        """Where the pass that was begun reads and writes."""
        caches = [self._caches[one.row] for one in self._segments]
        layers = LayersApart([cache.native_layers for cache in caches if cache.native_layers is not None])
        spans = [BlockSpan(one.start, one.new, one.held, (0,)) for one in self._segments]
        states = [state for cache in caches for state in cache.begun_states()]
        return CachePlaces(layers, BlockRows(spans, layers.block), states=states)

    def advance(self) -> None:
        """Count the tokens of this pass as held, in the caches that read any."""
        for one in self._segments:
            self._caches[one.row].advance()
        self._coming = None

    def take(self, rows: Tensor) -> NoReturn:
        raise UsageError("joined caches are for one pass: take rows of the caches")
