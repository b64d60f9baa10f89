"""The folder of a stock model, as `save_pretrained` of transformers writes it, without its seconds of importing."""

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoestring.model.bridge.family import Family
from shoestring.model.config import ModelConfig
from shoestring.model.safetensors_writer import write_tensors

CONFIG, GENERATION, WEIGHTS = "config.json", "generation_config.json", "model.safetensors"


def write_stock(
    folder: Path,
    family: Family,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    end: int | None,
) -> None:
    """Write a model of a family into a folder, byte for byte as its class in transformers does.

    weights: under the names of transformers; each is asked for by itself, and let go of before the next. The head of a tied model
        is left out.
    dtype: that they are written in.
    end: the id of the token at which generation stops, and which fills up its batches.
    """
    version = {"transformers_version": importlib.metadata.version("transformers")}
    about = {
        **family.written(config),
        **version,
        "architectures": [family.stock_class],
        "model_type": family.model_type,
        "dtype": str(dtype).removeprefix("torch."),
        "bos_token_id": None,
        "eos_token_id": end,
        # not `end`: its embedding would take no gradient for that token, which also separates documents
        "pad_token_id": None,
    }
    generation = {
        "_from_model_config": True,
        "output_attentions": False,
        "output_hidden_states": False,
        "use_cache": True,
        **({} if end is None else {"eos_token_id": end, "pad_token_id": end}),
        **version,
    }
    older = {name: old for old, name in family.aliases.items()}
    kept = {older.get(name, name): name for name in weights if not (config.tied and name == family.head)}
    outlines = {written: (dtype, tuple(weights[name].shape)) for written, name in kept.items()}
    _write(folder / CONFIG, about)
    _write(folder / GENERATION, generation)
    write_tensors(folder / WEIGHTS, outlines, lambda written: weights[kept[written]].to("cpu", dtype), {"format": "pt"})


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
