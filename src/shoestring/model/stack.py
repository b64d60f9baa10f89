"""The layers and spans of a model, in order, for a model whose layers are not all plain."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.contract.cost import Shape, trains
from shoestring.contract.model import LOSS, Carried, Notes, add_notes, whole
from shoestring.model.block import Block
from shoestring.model.span import CacheSizes, InnerLayers, Span, Where


class Stack:
    """Goes through blocks and spans. It owns no weights: it is made anew where parts were replaced.

    blocks: of the model. spans: each with the numbers of its layers, in order. tables: of each layer, which rotary tables it reads.
    """

    def __init__(
        self, blocks: Sequence[Block], spans: Sequence[tuple[Span, tuple[int, ...]]], tables: Sequence[int]
    ) -> None:
        self.blocks, self.spans, self._tables = list(blocks), list(spans), list(tables)
        self.recurrent = [number for number, block in enumerate(self.blocks) if block.recurrent]
        self.masked = len(self.recurrent) < len(self.blocks)
        """Whether a layer reads a mask."""
        self._steps: list[tuple[int | None, tuple[int, ...]]] = []
        wrapped = {layers[0]: (number, layers) for number, (_, layers) in enumerate(self.spans)}
        inside = {layer for _, layers in self.spans for layer in layers}
        for layer in range(len(self.blocks)):
            if layer in wrapped:
                self._steps.append(wrapped[layer])
            elif layer not in inside:
                self._steps.append((None, (layer,)))

    def read(self, x: Tensor, where: Where, caches: Sequence[Any] | None) -> tuple[Tensor, Notes]:
        """x [B, T, width] after all of them, and what they told. caches: the state of each layer."""
        notes: Notes = {}
        found: Tensor | Carried = x
        for number, layers in self._steps:
            held = [None if caches is None else caches[layer] for layer in layers]
            if number is None:
                found, told = self._through(layers, found, where, held)
            else:
                blocks, tables = (tuple(part[n] for n in layers) for part in (self.blocks, self._tables))
                each = tuple(partial(self._whole, (layer,)) for layer in layers)
                inner = InnerLayers(partial(self._whole, layers), each, blocks, tables)  # type: ignore[arg-type]
                found, told = self.spans[number][0](inner, whole(found), where, held)
                inside = {name for name in told if name.removeprefix(LOSS).startswith("blocks.")}
                add_notes(notes, {name: told[name] for name in told if name not in inside}, f"spans.{number}")
                told = {name: told[name] for name in inside}
            notes.update(told)
        return whole(found), notes

    def _through(
        self, layers: Sequence[int], x: Tensor | Carried, where: Where, caches: Sequence[Any]
    ) -> tuple[Tensor | Carried, Notes]:
        notes: Notes = {}
        for layer, cache in zip(layers, caches, strict=True):
            block = self.blocks[layer]
            cos, sin = where.tables[self._tables[layer]]
            # a compiled block would look at each entry of a trail: those that are early are not compiled
            more = {"trail": where.trail} if block.early else {}
            found = block(x, cos, sin, where.mask, cache, where.documents, **more)
            if block.tells:
                x, told = found
                add_notes(notes, told, f"blocks.{layer}")
            else:
                x = found
        return x, notes

    def _whole(self, layers: Sequence[int], x: Tensor, where: Where, caches: Sequence[Any]) -> tuple[Tensor, Notes]:
        """As `_through`, with nothing left to carry at the end."""
        found, notes = self._through(layers, x, where, caches)
        return whole(found), notes

    def new_caches(self, make: Callable[..., Any], sizes: CacheSizes) -> list[Any]:
        """The state of each layer.

        make: makes that of a block by itself, of `room` tokens where it is told, else of as many as `sizes` has.
        """
        found: list[Any] = []
        for number, layers in self._steps:
            makes = [partial(make, self.blocks[layer]) for layer in layers]
            found += [one() for one in makes] if number is None else self.spans[number][0].new_caches(makes, sizes)
        return found

    def held(self, dtype: torch.dtype) -> list[tuple[int, int]]:
        """Bytes that a cache takes of each layer: (of each token, of a row however long)."""
        found = [(token_bytes(block, dtype), state_bytes(block, dtype)) for block in self.blocks]
        for span, layers in self.spans:
            each = [found[layer] for layer in layers]
            for layer, own in zip(layers, span.all_held(each, dtype.itemsize), strict=True):
                found[layer] = own
        return found

    def flops(self, shape: Shape, inputs: bool) -> int:
        """Operations of a pass. inputs: whether x takes a gradient."""
        total = 0
        for number, layers in self._steps:

            def inner(shape: Shape, inputs: bool, layers: tuple[int, ...] = layers) -> int:
                return self._flops(layers, shape, inputs)

            if number is None:
                total += inner(shape, inputs)
            else:
                span = self.spans[number][0]
                total += span.flops(inner, shape, inputs)
                inputs = inputs or (shape.backward and trains(span))
            inputs = inputs or (shape.backward and any(trains(self.blocks[layer]) for layer in layers))
        return total

    def _flops(self, layers: Sequence[int], shape: Shape, inputs: bool) -> int:
        total = 0
        for layer in layers:
            block = self.blocks[layer]
            total += block.flops(shape, inputs)
            inputs = inputs or (shape.backward and trains(block))
        return total


def state_bytes(block: nn.Module, dtype: torch.dtype) -> int:
    """Bytes that a cache holds of one row, however long it is."""
    own: Any = getattr(block.token_mixer, "state_bytes", None)
    return 0 if own is None else int(own(dtype))


def token_bytes(block: nn.Module, dtype: torch.dtype) -> int:
    """Bytes that a cache holds of one token of a row."""
    mixer: Any = block.token_mixer
    own: Any = getattr(mixer, "token_bytes", None)
    if own is not None:
        return int(own(dtype))
    shape = mixer.cache_shape()
    return 0 if shape is None else int(2 * shape.heads * shape.head_width * dtype.itemsize)
