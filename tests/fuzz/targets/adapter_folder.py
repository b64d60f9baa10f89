"""An adapter's folder is damaged in one place: it opens on its base as a model that reads, or is refused in one line."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from shoestring.base import open_model
from shoestring.base.adapters import save_adapter
from shoestring.config import Choice
from shoestring.contract.batch import Inputs
from tests.base import making
from tests.fuzz.explore import Case
from tests.fuzz.mutations import mutate_bytes, mutate_json
from tests.tune.making import adapted, opened

LIMIT = 30.0
"""Seconds: the first case imports a class of transformers."""

METHODS: dict[str, dict[str, Any]] = {"lora": {"rank": 2}, "dora": {"rank": 2}, "road": {"group": 16}}


def prepare(folder: Path) -> Case:
    base = making.save(making.stock("llama", num_hidden_layers=1), folder / "base")
    for name, options in METHODS.items():
        edit = Choice.of("tune", name, kind="edit", **options).build()
        model, decision = adapted(opened(base), edit)
        save_adapter(folder / name, model, edit, decision.values, str(base), "llama")
    at = folder / "adapter"

    def case(draw: random.Random) -> None:
        shutil.rmtree(at, ignore_errors=True)
        shutil.copytree(folder / draw.choice(sorted(METHODS)), at)
        _damage(at, draw)
        found = open_model(str(at), torch.float32)
        with torch.no_grad():
            logits = found.model.read(Inputs(torch.tensor([[1, 2, 3]]))).logits()
        assert logits.shape == (1, 3, making.VOCABULARY)

    return case


def _damage(at: Path, draw: random.Random) -> None:
    settings, tensors = at / "adapter_config.json", at / "adapter_model.safetensors"
    match draw.randrange(5):
        case 0:
            draw.choice((settings, tensors)).unlink()
        case 1:
            tensors.write_bytes(mutate_bytes(tensors.read_bytes(), draw, within=draw.choice((8, 1500, None))))
        case 2:
            settings.write_bytes(mutate_json(settings.read_text(), draw))
        case 3:
            content = load(tensors.read_bytes())
            name = draw.choice(sorted(content))
            match draw.randrange(5):
                case 0:
                    del content[name]
                case 1:
                    content[f"{name}.more"] = content.pop(name)
                case 2:
                    content[name] = content[name][:-1].contiguous()
                case 3:
                    content[name] = torch.zeros(draw.choice(((0,), (0, 4), (3, 3, 3), ())))
                case _:
                    content[name.replace("layers.0", "layers.7")] = content.pop(name)
            tensors.write_bytes(save(content))
        case _:
            said = json.loads(settings.read_text())
            key = draw.choice(("r", "lora_alpha", "alpha_pattern", "peft_type", "group_size", "variant", "use_dora"))
            said[key] = draw.choice(
                (0, -1, 7, 1e308, None, "x", {}, [], {"q_proj": 0}, {"(a*)*": 1}, {"q_proj": "x"}, True)
            )
            settings.write_text(json.dumps(said))
