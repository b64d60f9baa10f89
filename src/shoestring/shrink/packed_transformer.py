"""A Transformer that computes with packed matrices, an embedding of few bits, and no float copy of either."""

from pathlib import Path
from typing import Self

from shoestring.base.quantised_model import QuantisedTransformer
from shoestring.errors import ShoestringError
from shoestring.lowbit import container
from shoestring.lowbit.packed_embedding import PackedEmbedding
from shoestring.lowbit.packed_linear import PackedLinear
from shoestring.model.config import ModelConfig
from shoestring.model.outline import outline

TABLES = 1 << 28
"""Bytes that the tables of rotary positions may take: a context of 262,144 where heads are 128 wide. They are in no file, so that a
file's own size does not bound them."""


class PackedTransformer(QuantisedTransformer):
    """A `Transformer` whose blocks hold `PackedLinear`s and whose embedding and head are `PackedEmbedding`s; for use, not for
    training. Made by `of`, or by `shrink.rounding.pack` from a trained one. Activations are float32, on the CPU. Raises:
    ShoestringError where the tables of its context would be beyond TABLES.
    """

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
