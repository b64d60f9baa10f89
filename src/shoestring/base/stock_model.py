"""A model of transformers' own class, from tensors that were read here: nothing of its loader touches a file."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from shoestring.base.safetensors_files import SafetensorsTensor, tensors
from shoestring.errors import ShoestringError, UsageError, first_line
from shoestring.model.outline import outline

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTIONS = ("sdpa", "eager")
"""Ways of attention that take any mask, the faster first."""


def open_stock_model(
    folder: Path, config: Any, stored: dict[str, SafetensorsTensor], dtype: torch.dtype
) -> "PreTrainedModel":
    """The model of a configuration, in evaluation mode on the CPU, with the weights that are stored.

    Raises: UsageError where there is no such class for text, where the sizes are not those of the weights, or weights are missing.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = config.model_type
    try:
        stock = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise UsageError(f"{folder}: a {kind} model is no causal language model") from None
    with _quiet(), torch.random.fork_rng(devices=[]):
        _refuse_larger(folder, stock, config, stored)
        for attention in ATTENTIONS:
            try:
                made, told = stock.from_pretrained(
                    None,
                    config=config,
                    state_dict=dict(tensors(stored)),
                    dtype=dtype,
                    attn_implementation=attention,
                    ignore_mismatched_sizes=True,  # they are told, and refused below
                    output_loading_info=True,
                    trust_remote_code=False,
                )
                break
            except ShoestringError:
                raise
            except Exception as error:  # whatever its class says of foreign sizes
                if attention == ATTENTIONS[-1] or "scaled_dot_product_attention" not in str(error):
                    raise UsageError(f"{folder} makes no {kind} model: {first_line(error)}") from None
    for what, key in (("are missing", "missing_keys"), ("have other shapes", "mismatched_keys")):
        if wrong := sorted(map(str, told[key])):
            raise UsageError(f"{folder}: {len(wrong)} weights of this {kind} model {what}: {wrong[0]} first")
    found: PreTrainedModel = made.eval()
    return found


def _refuse_larger(folder: Path, stock: Any, config: Any, stored: dict[str, SafetensorsTensor]) -> None:
    """Raises: UsageError where the configuration describes more weights than there are, before they take memory."""
    try:
        with outline():
            described = sum(parameter.numel() for parameter in stock(config).parameters())
    except Exception as error:  # whatever its class says of foreign sizes
        raise UsageError(f"{folder}: its configuration makes no model: {first_line(error)}") from None
    there = sum(one.numbers for one in stored.values())
    if described > 1.05 * there + 1024:
        raise UsageError(f"{folder}: its configuration describes {described:,} weights, and its files hold {there:,}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers reports on the screen what is told here in words."""
    from transformers.utils import logging as theirs

    level, shown = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        theirs.set_verbosity(level)
        if shown:
            theirs.enable_progress_bar()
