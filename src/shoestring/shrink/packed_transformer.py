"""A Transformer that computes with packed matrices, an embedding of few bits, and no float copy of either."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from shoestring.contract.cache import Cache
from shoestring.contract.model import About, Head
from shoestring.errors import ShoestringError
from shoestring.kernels.decoder import Decoder
from shoestring.lowbit import container
from shoestring.lowbit.kernels import gather
from shoestring.lowbit.packed_embedding import PackedEmbedding
from shoestring.lowbit.packed_linear import PackedLinear
from shoestring.model.cache import ContiguousCache
from shoestring.model.config import ModelConfig
from shoestring.model.outline import outline
from shoestring.model.transformer import Transformer, rotary_tables
from shoestring.shrink.native_blocks import native_decoder

TABLES = 1 << 28
"""Bytes that the tables of rotary positions may take: a context of 262,144 where heads are 128 wide. They are in no file, so that a
file's own size does not bound them."""


class PackedHead(NamedTuple):
    """A `Head` whose matrix is packed: it has no weight in floating point."""

    table: PackedEmbedding
    weight: None = None

    def logits(self, hidden: Tensor) -> Tensor:
        return self.table.logits(hidden)

    def flops(self, places: int) -> int:
        return 2 * places * self.table.out_features * self.table.in_features


class PackedTransformer(Transformer):
    """A `Transformer` whose blocks hold `PackedLinear`s and whose embedding and head are `PackedEmbedding`s; for use, not for
    training. Made by `of`, or by `shrink.rounding.pack` from a trained one. Activations are float32, on the CPU. Raises:
    ShoestringError where the tables of its context would be beyond TABLES.

    A single token that follows those in a cache goes through all blocks in one native call where there is one for their parts
    (`native_decoder`), else, as several tokens do, module by module. Their floating-point sums are not in the same order.
    """

    decoder: Decoder | str = "it is not made yet"
    """What a single token goes through, or why it goes module by module."""

    def __init__(self, config: ModelConfig) -> None:
        most = TABLES // (2 * 4 * config.head_width)
        if config.context > most:
            raise ShoestringError(
                f"a packed model whose heads are {config.head_width} wide has a context of up to {most}, not {config.context}"
            )
        super().__init__(config)

    @classmethod
    def of(cls, path: Path, contents: container.Contents, config: ModelConfig) -> Self:
        """The model of `config` that the file at `path` holds; no float matrix is made on the way.

        Raises: ShoestringError where the file's contents are not such a model.
        """
        _refuse_larger_than_its_file(path, contents, config)
        try:
            with outline():
                model = cls(config)
        except ShoestringError as error:
            raise ShoestringError(f"{path}: {error}") from None
        container.install(path, contents, model)
        for name, module in contents.modules.items():
            table = name in ("embedding", "head")
            if isinstance(module, PackedEmbedding) != table:
                raise ShoestringError(f"{path}: {name} is a {type(module).__name__}, which cannot stand there")
        if "embedding" not in contents.modules or (model.head is not None and "head" not in contents.modules):
            raise ShoestringError(f"{path}: embedding and head are not packed")
        return model.ready()

    def ready(self) -> Self:
        """The model, once its weights are in place, with the tables that are no weights; in evaluation mode. What is packed is
        moved together, where it is read faster (`kernels.gather`)."""
        self.rotary = rotary_tables(self.config)
        places = [(part, "packed") for part in self.packed]
        tables: list[Any] = [module for module in self.modules() if isinstance(module, PackedEmbedding)]
        places += [(part, "weight") for part in tables]
        for (part, name), moved in zip(places, gather([getattr(p, n) for p, n in places]), strict=True):
            setattr(part, name, moved)
        self.requires_grad_(False).eval()
        self.decoder = native_decoder(self)
        return self

    def changed(self) -> None:
        super().changed()
        if isinstance(self.decoder, Decoder):  # a part may have an adapter now, which it does not know
            self.decoder = native_decoder(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.decoder = "it was moved or cast"  # its tensors are no longer those that the decoder knows
        super()._apply(fn, recurse)
        return self

    def _through_blocks(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        one_token = x.shape[:2] == (1, 1) and isinstance(cache, ContiguousCache) and cache.stacked is not None
        if isinstance(self.decoder, str) or not one_token or mask is not None:
            return super()._through_blocks(x, cos, sin, mask, cache)
        assert isinstance(cache, ContiguousCache)
        assert cache.stacked is not None
        one, (keys, values) = x.detach().flatten().clone(), cache.stacked
        if not self.decoder.step(one, keys[:, 0], values[:, 0], cache.length, cos.flatten(), sin.flatten()):
            return super()._through_blocks(x, cos, sin, mask, cache)
        return one.view(x.shape)

    @property
    def about(self) -> About:
        return dataclasses.replace(super().about, alone=isinstance(self.decoder, Decoder))

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        found: torch.device = self.norm.weight.device
        return found

    def _head(self) -> Head:
        return PackedHead(self.get_output_embeddings())  # type: ignore[arg-type]

    @property
    def packed(self) -> list[PackedLinear]:
        """The packed matrices."""
        return [module for module in self.modules() if isinstance(module, PackedLinear)]


def _refuse_larger_than_its_file(path: Path, contents: container.Contents, config: ModelConfig) -> None:
    """Any block has a matrix of the width by each of these, whatever its parts: the file must have as many numbers."""
    tensors = len(contents.modules) + len(contents.others)
    if config.layers > tensors:
        raise ShoestringError(f"{path} has too few tensors for {config.layers} layers")
    numbers = sum(module.out_features * module.in_features for module in contents.modules.values())
    numbers += sum(value.numel() for value in contents.others.values())
    for name, size in {
        "vocabulary": config.vocabulary,
        "heads": config.heads * config.head_width,
        "key_value_heads": config.key_value_heads * config.head_width,
        "hidden": config.hidden,
    }.items():
        if config.width * size > numbers:
            raise ShoestringError(f"{path} has too few numbers for a width of {config.width} and the {name} it states")
