"""The folder of a quantised model: one safetensors file, checked whole before it is used, and the tokenizer's files.

The file says what it is (`described_file.py`): the configuration of the model, what each encoded matrix is, and what else there is
to say of it. Tensors named MATRIX:PART are the parts of matrices; all others are the rest of the model's state, float32 or, of
tables of 16 bits, float16.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from shoestring import atomic
from shoestring.config import tree
from shoestring.contract.model import LanguageModule
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import ShoestringError, UsageError, first_line
from shoestring.model.outline import outline
from shoestring.model.transformer import Transformer
from shoestring.model.wrapped import Wrapped
from shoestring.quantise.described_file import DescribedFormat
from shoestring.quantise.format import Encoded
from shoestring.quantise.kept import names_of, read_back, written
from shoestring.quantise.tables import table_names

FILE = "quantised.safetensors"
KIND = DescribedFormat("shoestring-quantised", 1, "quantised model")
STOCK = "stock"
"""The folder with the configuration of transformers, for a model that is wrapped."""

TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class QuantisedFile:
    """What a file holds.

    config: the model's section of a configuration; empty for a wrapped model.
    matrices: encoded, by names of modules, embedding and head among them.
    rest: the other tensors of the model's state.
    about: JSON values: 'ends', ids that end a text; 'recipe', 'notes'.
    """

    config: dict[str, Any]
    matrices: dict[str, Encoded]
    rest: dict[str, Tensor]
    about: dict[str, Any] = field(default_factory=dict)


def is_quantised(path: Path) -> bool:
    """Whether there is such a file in a folder."""
    return (path / FILE).is_file()


def require_kept(model: LanguageModule) -> None:
    """Raises: UsageError for a model that is not kept as a quantised one."""
    if isinstance(model, Transformer) and model.config.span:
        names = ", ".join(one.span.name for one in model.config.span)
        raise UsageError(f"layers within a span ({names}) read other than the tokens of a text: they are not quantised")
    if isinstance(model, Transformer) and not _as_configured(model):
        raise UsageError(
            "its layers are of unlike sizes, which its configuration does not hold: it is not kept as a quantised model"
        )
    if not isinstance(model, Transformer | Wrapped):
        raise UsageError(f"a {type(model).__name__} is not kept as a quantised model")


def _as_configured(model: Transformer) -> bool:
    """Whether a model made of its configuration would have tensors of the same names and shapes."""
    with outline():
        made = Transformer(model.config)
    mine, theirs = ({name: one.shape for name, one in each.state_dict().items()} for each in (model, made))
    return mine == theirs


def contents_of(model: LanguageModule, matrices: dict[str, Encoded], about: dict[str, Any]) -> QuantisedFile:
    """What is to be kept of a model whose weights are those that `matrices` stand for. Raises: UsageError for one that is not
    kept."""
    require_kept(model)
    config: dict[str, Any] = json.loads(json.dumps(tree(model.config))) if isinstance(model, Transformer) else {}
    tables = {f"{name}.weight" for name in table_names(model) if name not in matrices}
    rest = {}
    for name, value in model.state_dict().items():
        if name.removesuffix(".weight") in matrices and name.endswith(".weight"):
            continue
        wide = value.detach().float() if value.is_floating_point() else value.detach()
        if wide.is_floating_point() and not bool(wide.isfinite().all()):
            raise ShoestringError(f"{name} holds a number that is not finite")
        rest[name] = wide.half() if name in tables else wide.clone()
    return QuantisedFile(config, matrices, rest, about)


def write_folder(
    folder: Path, model: LanguageModule, contents: QuantisedFile, tokenizer: TextTokenizer | None, template: str | None
) -> int:
    """Fill `folder`, the model's file last. Returns its bytes."""
    if tokenizer is not None:
        tokenizer.save(folder)
    if template is not None:
        atomic.write_text(folder / TEMPLATE, template)
    if isinstance(model, Wrapped):
        (folder / STOCK).mkdir()
        atomic.write_text(folder / STOCK / "config.json", model.stock.config.to_json_string(use_diff=False))
    content = _content(contents)
    atomic.write_bytes(folder / FILE, content)
    return len(content)


def overhead(contents: QuantisedFile) -> int:
    """Bytes of the file beside the codes and parameters of matrices."""
    return len(_content(contents)) - sum(one.nbytes for one in contents.matrices.values())


def _content(contents: QuantisedFile) -> bytes:
    values, tensors = written(contents.matrices)
    tensors |= {name: one.cpu().contiguous() for name, one in contents.rest.items()}
    return KIND.content({"config": contents.config, "matrices": values, "about": contents.about}, tensors)


def read_folder(folder: Path) -> QuantisedFile:
    """The contents of the file of a folder. Nothing in it is trusted.

    Raises: as `DescribedFormat.read`.
    """
    path = folder / FILE
    described, tensors = KIND.read(path)
    parts = [described.get(key) for key in ("config", "matrices", "about")]
    if not all(isinstance(part, dict) for part in parts):
        raise ShoestringError(f"{path} does not describe a quantised model")
    config, values, about = parts
    try:
        matrices = read_back(values, tensors)  # type: ignore[arg-type]
    except ShoestringError as error:
        raise ShoestringError(f"{path}: {first_line(error)}") from None
    rest = {name: one for name, one in tensors.items() if name not in names_of(matrices)}
    for name, one in rest.items():
        if ":" in name:
            raise ShoestringError(f"{path}: {name} belongs to no matrix")
        if one.is_floating_point() and not bool(one.isfinite().all()):
            raise ShoestringError(f"{path}: {name} holds a number that is not finite")
    return QuantisedFile(config, matrices, rest, about)  # type: ignore[arg-type]
