"""The parts of a native model's blocks that transforms change together: attention with grouped heads, and SwiGLU, before norms."""

from dataclasses import dataclass
from typing import Any

from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.model.attention import Attention
from shoestring.model.swiglu import SwiGLU
from shoestring.model.transformer import Transformer


@dataclass(frozen=True)
class KnownBlock:
    """name: of the block. block: with `token_norm`, `token_mixer` (Attention), `channel_norm` and `channel_mixer` (SwiGLU).

    values: the first row of the values in `qkv`. head_width: features of a head. shared: key and value heads. sharing: query
    heads of each.
    """

    name: str
    block: Any
    values: int
    head_width: int
    shared: int
    sharing: int


def known_blocks(model: LanguageModule) -> tuple[Transformer, list[KnownBlock]]:
    """(the model, its blocks). Raises: UsageError for a model that is not native, or has other parts."""
    if not isinstance(model, Transformer):
        raise UsageError("this transform is for native models: of others it is not known which weights go together")
    found = []
    for name, block in zip(model.anatomy().layers, model.blocks, strict=True):
        mixer, channels = block.token_mixer, block.channel_mixer
        if type(mixer) is not Attention or type(channels) is not SwiGLU:
            raise UsageError(f"{name} has other parts than attention and swiglu, for which this transform is")
        queries, keys, _ = mixer.split
        width = mixer.head_width
        found.append(KnownBlock(name, block, (queries + keys) * width, width, keys, queries // keys))
    return model, found
