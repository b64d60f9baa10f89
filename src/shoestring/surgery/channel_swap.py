"""What edits share that put other channel mixers in a native model."""

from typing import Any

from torch import nn

from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError


def native(model: LanguageModule, edit: str) -> Any:
    """The anatomy of a native model. Raises: UsageError for any other."""
    anatomy = model.anatomy()
    if not hasattr(anatomy, "swap_channel_mixers"):
        raise UsageError(f"{edit} is for native models: the layers of a wrapped one are its makers' own")
    return anatomy


def gated_hidden(anatomy: Any, at: str, edit: str) -> dict[int, list[int]]:
    """Layers by their number of hidden features, all of them SwiGLU. at: which, as a pattern of [model] names them.

    Raises: UsageError where there is no such layer, or one is of another kind.
    """
    found: dict[int, list[int]] = {}
    for number in anatomy.numbers(at):
        mixer = anatomy.model.blocks[number].channel_mixer
        parts = [getattr(mixer, name, None) for name in ("gate_up", "output")]
        if not all(type(part) is nn.Linear and part.bias is None for part in parts):
            raise UsageError(
                f"{edit} needs gated layers (SwiGLU) of plain matrices without biases: the channel mixer of layer {number} is "
                f"{type(mixer).__name__}"
            )
        found.setdefault(mixer.output.in_features, []).append(number)
    return found
