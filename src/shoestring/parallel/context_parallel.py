"""Context parallelism: each process reads a part of the places of every row, and attention alone reaches over all of them."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.cache import Cache
from shoestring.contract.model import Reading
from shoestring.data.stream import PartOfStream, stream_of
from shoestring.data.windows import BatchSource
from shoestring.errors import UsageError
from shoestring.model.attention import Attention
from shoestring.model.blocks import Blocks
from shoestring.parallel.layout import ParallelLayout
from shoestring.parallel.ring_attention import Ring, own_places


def part_of_rows(batch: Batch, place: int, parts: int) -> Batch:
    """The places of each row that process `place` of `parts` has, which say what their positions are.

    Raises: UsageError for rows that do not divide into 2 `parts` equal pieces, that are padded, or that have a mask.
    """
    inputs = batch.inputs
    length = inputs.length
    if length % (2 * parts) or inputs.lengths is not None or inputs.mask is not None:
        raise UsageError(f"parallel.context = {parts}: rows of {length} tokens, padded or masked, do not divide")
    places = own_places(length, place, parts)
    positions = torch.arange(length).expand(inputs.rows, -1) if inputs.positions is None else inputs.positions

    def part(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[:, places.to(tensor.device)]

    own = Inputs(inputs.values[:, places], positions[:, places], part(inputs.documents))
    return replace(batch, inputs=own, targets=batch.targets[:, places], weights=part(batch.weights))


def parts_of_rows(source: BatchSource, layout: ParallelLayout, rank: int) -> BatchSource:
    """Batches of which the process of this rank has its part of each row."""
    if layout.context == 1:
        return source
    return PartOfStream(
        stream_of(source), partial(part_of_rows, place=layout.places(rank)["context"], parts=layout.context)
    )


def divide_context(model: Blocks, mesh: DeviceMesh) -> None:
    """Have a model read rows of which each process has its part, as `part_of_rows` cuts them.

    mesh: of the processes, one dimension.
    Raises: UsageError, naming the layer, where one mixes tokens otherwise than by attention.
    """
    parts = mesh.size()
    if model.config.span:
        name = model.config.span[0].span.name
        raise UsageError(
            f"parallel.context: the span {name} may look at whole rows, of which a process has a part alone"
        )
    if not model.config.causal:
        raise UsageError("parallel.context: this model sees both ways, and rows are divided for causal attention")
    mixers: list[Any] = [block.token_mixer for block in model.blocks]
    for number, mixer in enumerate(mixers):
        if type(mixer) is not Attention:
            name = model.config.layer(number).token_mixer.name
            raise UsageError(
                f"parallel.context: layer {number} mixes tokens by {name}, which needs whole rows: attention alone is divided"
            )
    ring = Ring(mesh.get_group())
    for mixer in mixers:
        mixer.divide_context(ring, parts)
    read = model.read

    def reading(inputs: Inputs, cache: Cache | None = None, **options: Any) -> Reading:
        if cache is not None or inputs.mask is not None or inputs.lengths is not None:
            raise UsageError("parallel.context: a model whose rows are divided takes no cache, no mask and no padding")
        ring.begin(inputs.documents)
        return read(inputs._replace(documents=None), **options)

    model.read = reading  # type: ignore[method-assign]


def keys_and_values(model: Any) -> int:
    """Numbers that the keys and values of one token are, in all layers of this process."""
    return sum(2 * block.token_mixer.split[1] * block.token_mixer.head_width for block in model.blocks)
