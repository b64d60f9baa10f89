"""An integer-only model as a file of tensors that are all of integers, and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from shoestring import atomic
from shoestring.config import build, tree
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import ShoestringError, UsageError, first_line
from shoestring.model.config import ModelConfig
from shoestring.quantise.described_file import DescribedFormat
from shoestring.quantise.folder import TEMPLATE
from shoestring.quantise.integer_only.model import IntegerOnlyTransformer
from shoestring.quantise.integer_only.norm import BIAS_BITS

FILE = "integers.safetensors"
KIND = DescribedFormat("shoestring-integer-only", 1, "integer-only model")

LONG = 64
"""A shift that is too long for integers of so many bits."""


@dataclass(frozen=True)
class IntegerOnlyFile:
    """model: ready to be used. about: JSON values: 'ends', ids that end a text; 'footprint'; 'notes'."""

    model: IntegerOnlyTransformer
    about: Mapping[str, Any] = field(default_factory=dict)


def is_integer_only(path: Path) -> bool:
    """Whether there is such a file in a folder."""
    return (path / FILE).is_file()


def write_folder(folder: Path, contents: IntegerOnlyFile, tokenizer: TextTokenizer | None, template: str | None) -> int:
    """Fill `folder`, the model's file last. Returns its bytes."""
    if tokenizer is not None:
        tokenizer.save(folder)
    if template is not None:
        atomic.write_text(folder / TEMPLATE, template)
    model = contents.model
    said = {"config": tree(model.config), "logits_scale": model.logits_scale, "about": dict(contents.about)}
    content = KIND.content(said, {name: one.contiguous() for name, one in model.state_dict().items()})
    atomic.write_bytes(folder / FILE, content)
    return len(content)


def read_folder(folder: Path) -> IntegerOnlyFile:
    """The contents of a folder. Nothing in it is trusted.

    Raises: as `DescribedFormat.read`; ShoestringError where the tensors are not those of the model that is described.
    """
    path = folder / FILE
    said, tensors = KIND.read(path)
    config, scale, about = (said.get(key) for key in ("config", "logits_scale", "about"))
    if not (isinstance(config, dict) and isinstance(about, dict) and isinstance(scale, float) and 0 < scale < 1e30):
        raise ShoestringError(f"{path} does not describe an integer-only model")
    layers = config.get("layers")
    if not isinstance(layers, int) or layers > len(tensors):
        raise ShoestringError(f"{path} has too few tensors for {layers} layers")
    try:
        with torch.device("meta"):
            model = IntegerOnlyTransformer(build(ModelConfig, config))
        wanted = model.state_dict()
        for name in sorted(wanted.keys() ^ tensors.keys()):
            has = "lacks" if name in wanted else "has, and its model has not,"
            raise ShoestringError(f"it {has} the tensor {name}")
        for name, one in wanted.items():
            given = tensors[name]
            if (given.shape, given.dtype) != (one.shape, one.dtype):
                raise ShoestringError(
                    f"{name} is {given.dtype} {list(given.shape)}, and the model's is {one.dtype} {list(one.shape)}"
                )
            least = BIAS_BITS if name.endswith("norm.shift") else 0  # a norm has its bias added on the way
            if name.endswith("shift") and not least < int(given) < LONG:
                raise ShoestringError(f"{name} is {int(given)}, which is no shift")
        model.load_state_dict(tensors, assign=True)
    except (UsageError, ShoestringError, OverflowError, RecursionError, ValueError, RuntimeError) as error:
        raise ShoestringError(f"{folder} is no integer-only model of this program: {first_line(error)}") from None
    model.logits_scale = scale
    return IntegerOnlyFile(model.eval(), about)
