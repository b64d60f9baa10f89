"""The configuration of a transformers folder, as data: what in it would have code be fetched or run is left out or refused."""

import re
from pathlib import Path
from typing import Any

from shoestring.errors import ShoestringError, UsageError, did_you_mean, first_line, printable
from shoestring.json_files import NotJson, parse_json, read_file

CONFIG = "config.json"

LEFT_OUT = re.compile(
    r"auto_map|_?attn_implementation.*|_?experts_implementation.*|.*kernel.*|fusion_config|distributed_config|device_map|.*tp_plan"
    r"|.*pp_plan|.*ep_plan|_name_or_path|name_or_path|architectures|torch_dtype|dtype|transformers_weights|extra_files|_commit_hash"
    r"|.*_quantization_dtype|custom_pipelines|gguf_file|generation_config"
)
"""Keys that say where code or other files are, or how to run: none of them is a size or a constant of the model."""

MOST_CONTEXT = 1 << 21
"""Tokens of a context: the tables of positions have a row for each."""

_LAYERS = re.compile(r"(num_(hidden_|decoder_|encoder_)?|n_)layers?")
_COUNTS = re.compile(r"(num|n)_.*(layer|head|expert|block|group).*|.*_(layers|heads|experts|blocks|groups)")
"""Keys of numbers of which a model is built part by part."""

MOST_PARTS = 1 << 14
"""Parts other than layers, at most."""


def read_values(folder: Path) -> dict[str, Any]:
    """What config.json says. Raises: UsageError where there is none that can be used."""
    path = folder / CONFIG
    text = read_file(path)
    if text is None:
        raise UsageError(f"{path} is not there")
    try:
        values = parse_json(text)
    except NotJson as error:
        raise ShoestringError(f"{path}, line {error.line}, is damaged: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise UsageError(f"{path} names no model_type")
    return values


def read_config(folder: Path, most: int) -> Any:
    """The configuration of transformers for the folder's model.

    most: parts of the model, at most: as many as there are tensors.
    Raises: UsageError where it cannot be used, or needs code that comes with the model.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    path, values = folder / CONFIG, read_values(folder)
    kind = values["model_type"]
    if kind not in CONFIG_MAPPING_NAMES:
        if values.get("auto_map"):
            raise UsageError(
                f"{path}: a model of type '{_short(kind)}' needs code that comes with it, which is never run here"
            )
        near = did_you_mean(_short(kind), CONFIG_MAPPING_NAMES) if len(kind) < 40 else ""
        near = near if near.startswith("did") else "is it of a newer version?"
        raise UsageError(f"{path}: the installed transformers has no models of type '{_short(kind)}': {near}")
    if values.get("quantization_config"):
        raise UsageError(
            f"{path}: its weights are quantised by another program, which is not supported: take the plain ones"
        )
    _refuse_sizes(path, values, most)
    plain = _plain(values)
    del plain["model_type"]
    try:
        config = CONFIG_MAPPING[kind].from_dict(plain)
        context = int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 0)
    except Exception as error:  # each of its classes checks in its own way
        raise UsageError(f"{path} makes no {_short(kind)} configuration: {first_line(error)}") from None
    if context > MOST_CONTEXT:
        raise UsageError(f"{path}: a context of {context} tokens, and {MOST_CONTEXT} are the most that is taken")
    return config


def _plain(value: Any) -> Any:
    """A copy without the keys of `LEFT_OUT`, at any depth."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if not LEFT_OUT.fullmatch(str(key))}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _refuse_sizes(path: Path, value: Any, most: int) -> None:
    """Raises: UsageError for numbers of which a model would be built that has no end."""
    if isinstance(value, list):
        for inner in value:
            _refuse_sizes(path, inner, most)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, int | float) and not isinstance(inner, bool):
                of_layers, of_parts = (pattern.fullmatch(str(key)) for pattern in (_LAYERS, _COUNTS))
                limit = most if of_layers else MOST_PARTS if of_parts else 1 << 40
                if not abs(inner) <= limit:
                    raise UsageError(f"{path}: {_short(key)} = {_short(inner)}, which its weights cannot be")
            _refuse_sizes(path, inner, most)


def _short(value: Any) -> str:
    return printable(str(value))[:60]
