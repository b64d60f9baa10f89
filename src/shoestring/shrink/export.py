"""An opened model as a folder for transformers, or as a GGUF file, its edits folded into plain weights."""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shoestring import atomic
from shoestring.base import Opened
from shoestring.contract.model import LanguageModel, LanguageModule
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import UsageError
from shoestring.lowbit.convert import lowered_layers
from shoestring.model.hf import export, to_transformers
from shoestring.model.outline import outline
from shoestring.model.transformer import Transformer
from shoestring.shrink.gguf_file import KINDS, write_gguf
from shoestring.shrink.gguf_writer import Q8_0_COLUMNS, write_stock

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

GGUF_TYPES = ("F32", "F16", "BF16", "Q8_0", *KINDS)
"""Types that the matrices of a GGUF file are written in."""

OWN_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""The type in a GGUF file that holds weights as they are."""

TEMPLATE = "chat_template.jinja"
"""The file that transformers looks for."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    place: of the folder or file.
    bytes: of all of it.
    dtype: of the weights; of most matrices of a GGUF file.
    folded: the edits that are plain weights now.
    """

    place: Path
    bytes: int
    dtype: str
    folded: tuple[str, ...]


def refuse_taken(out: Path) -> None:
    """Raises: UsageError where `out` holds something."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} exists: name another with --out")


def export_transformers(
    opened: Opened, out: Path, dtype: torch.dtype | None, weights: Mapping[str, Tensor] | None = None
) -> Exported:
    """Write the folder `out` for `AutoModelForCausalLM` and `AutoTokenizer`, whole or not at all.

    The opened model is changed, and not to be used after that.

    dtype: of the weights; None: as they are.
    weights: by name, where the model is an outline without any (`train.stored_run`): no more than one is in memory.
    Raises: UsageError where `out` holds something, or the model is of no stock class.
    """
    refuse_taken(out)
    model, folded = plain(opened)
    dtype = dtype or _dtype(model)
    end = None if opened.tokenizer is None else opened.tokenizer.end
    if opened.tokenizer is None:
        log.warning("there is no tokenizer to write beside the model")
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        if opened.tokenizer is not None:
            opened.tokenizer.save(files)
            if opened.about.chat_template is not None:
                (files / TEMPLATE).write_text(opened.about.chat_template, encoding="utf-8")
        if isinstance(model, Transformer):
            export(model, files, out, dtype, end=end, weights=weights)
        else:
            stock = stock_of(model)
            with atomic.directory(out) as half, _without_bars():
                stock.to(dtype).save_pretrained(half)
                for file in files.iterdir():
                    shutil.copyfile(file, half / file.name)
    size = sum(file.stat().st_size for file in out.iterdir())
    return Exported(out, size, str(dtype).removeprefix("torch."), folded)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers from drawing its bars over what is on the screen."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def export_gguf(opened: Opened, out: Path, kind: str | None) -> Exported:
    """Write the GGUF file `out`, whole or not at all.

    The opened model is changed, and not to be used after that.

    kind: of `GGUF_TYPES`, the type of matrices; None: the one that the weights have. A matrix without whole blocks is F16.
    Raises: UsageError where `out` exists, there is no tokenizer, or llama.cpp has no architecture for the model.
    """
    refuse_taken(out)
    if opened.tokenizer is None:
        raise UsageError(f"{opened.about.place} has no tokenizer, and a GGUF file holds one")
    model, folded = plain(opened)
    kind = kind or OWN_TYPES[_dtype(model)]
    template = opened.about.chat_template
    if kind in KINDS:
        if not isinstance(model, Transformer):
            raise UsageError(f"{opened.about.place} is no native model, and only such are written in {kind}")
        ternary = next(each for each in KINDS if each == kind)
        write_gguf(out, model.float(), opened.tokenizer, ternary, chat_template=template)
    else:
        _write_plain(out, stock_of(model), opened.tokenizer, kind, template)
    return Exported(out, out.stat().st_size, kind, folded)


def _write_plain(
    out: Path, stock: "PreTrainedModel", tokenizer: TextTokenizer, kind: str, template: str | None
) -> None:
    narrow = list[str]()

    def type_of(name: str, weight: Tensor) -> str:
        if kind == "Q8_0" and weight.shape[1] % Q8_0_COLUMNS:
            narrow.append(name)
            return "F16"
        return kind

    write_stock(out, stock, tokenizer, type_of, kind, chat_template=template)
    if narrow:
        more = f" and {len(narrow) - 1} more" if narrow[1:] else ""
        log.warning(f"{narrow[0]}{more} are F16: their columns are no multiple of {Q8_0_COLUMNS}, the block of Q8_0")


def plain(opened: Opened) -> tuple[LanguageModel, tuple[str, ...]]:
    """(the model of plain layers that computes what the opened one does, the edits that were folded for it).

    Raises: UsageError where there is no such model.
    """
    model = opened.model
    if isinstance(model, LanguageModule):
        rounded = sum(layer.activations != "none" for layer in lowered_layers(model))
        if rounded:
            log.warning(f"activations of {rounded} matrices are rounded in this model, and not in the export")
    if opened.fold is not None:
        model = opened.fold()
    if isinstance(model, Transformer):
        _refuse_special(model, opened.about.kind)
    values = opened.about.values
    return model, (*values.get("base_edits", ()), *values.get("edits", ()))


def _refuse_special(model: Transformer, kind: str) -> None:
    """Raises: UsageError where a native model has layers that are not those of its configuration."""
    if kind == "packed":
        raise UsageError("a packed model is not exported: export the run that it was packed from")
    with outline():
        stock = {name: type(module) for name, module in Transformer(model.config).named_modules() if name}
    for name, module in model.named_modules():
        if name and stock.get(name) is not type(module):
            raise UsageError(
                f"{name} is a {type(module).__name__}, which other programs do not have: it cannot be exported"
            )


def stock_of(model: LanguageModel) -> "PreTrainedModel":
    """The model as a stock one of transformers: a copy of a native one, the wrapped one itself.

    Raises: UsageError for a model that is neither, or of no stock class.
    """
    from transformers import PreTrainedModel

    if isinstance(model, Transformer):
        return to_transformers(model)
    stock = getattr(model, "stock", None)
    if isinstance(stock, PreTrainedModel):
        return stock
    raise _no_single(model)


def _dtype(model: LanguageModel) -> torch.dtype:
    """The type of a model's weights."""
    if not isinstance(model, torch.nn.Module):
        raise _no_single(model)
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def _no_single(model: LanguageModel) -> UsageError:
    return UsageError(
        f"a model of the kind {type(model).__name__} is not exported: other programs hold one model, so export a part of it"
    )
