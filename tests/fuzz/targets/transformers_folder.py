"""A transformers folder is damaged in one place: it opens as a model that reads, or is refused in one line."""

import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from shoestring.base import open_model
from shoestring.contract.batch import Inputs
from shoestring.data import train_bpe
from tests.base import making
from tests.fuzz.explore import Case
from tests.fuzz.mutations import mutate_bytes, mutate_json

TYPES = (torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool)
LIMIT = 30.0
"""Seconds: the first case of a kind imports its class."""


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["SHOESTRING_EVIL"],)


def prepare(folder: Path) -> Case:
    at, ran = folder / "model", folder / "ran"
    os.environ["SHOESTRING_EVIL"] = str(ran)
    tokenizer = train_bpe([Path(making.__file__).read_text()], 400)
    files: dict[str, dict[str, bytes]] = {}
    for kind in ("llama", "gpt2"):
        saved = making.save(making.stock(kind, num_hidden_layers=1), folder / kind)
        tokenizer.save(saved)
        (saved / "chat_template.jinja").write_text("{{ messages }}")
        files[kind] = {path.name: path.read_bytes() for path in saved.iterdir()}
        (folder / "warm").mkdir(exist_ok=True)
        open_model(str(saved))  # what is imported, is imported

    def case(draw: random.Random) -> None:
        shutil.rmtree(at, ignore_errors=True)
        at.mkdir()
        content = files[draw.choice(tuple(files))]
        for name, each in content.items():
            (at / name).write_bytes(each)
        _damage(at, draw)
        try:
            opened = open_model(str(at))
            ids = [1, 2] if opened.tokenizer is None else opened.tokenizer.encode("some text")[:8] or [1]
            with torch.no_grad():
                opened.model.read(Inputs(torch.tensor([ids]))).logits()
        finally:
            assert not ran.exists(), "code from the folder has run"

    return case


def _damage(at: Path, draw: random.Random) -> None:
    weights = at / "model.safetensors"
    match draw.randrange(10):
        case 0:
            draw.choice(sorted(at.iterdir())).unlink()
        case 1:
            weights.write_bytes(mutate_bytes(weights.read_bytes(), draw, within=draw.choice((8, 3000, None))))
        case 2:
            weights.write_bytes(_forged(weights.read_bytes(), draw))
        case 3:
            for name in draw.sample(("pytorch_model.bin", "model.pt", "tokenizer.pkl", "training_args.bin"), 2):
                (at / name).write_bytes(pickle.dumps(Evil()))
            if draw.random() < 0.5:
                shutil.copy(draw.choice([*at.glob("*.bin"), *at.glob("*.p*")]), weights)
        case 4:
            named = draw.choice(("model.safetensors", "../model/model.safetensors", "/dev/zero", "a.bin", 3, None))
            index = json.dumps({"metadata": {}, "weight_map": {"a": named}})
            (at / "model.safetensors.index.json").write_bytes(
                mutate_json(index, draw) if draw.random() < 0.5 else index.encode()
            )
        case 5:
            path = at / draw.choice(("tokenizer_config.json", "generation_config.json"))
            path.write_bytes(mutate_json(path.read_bytes() if path.exists() else b"{}", draw))
        case 6:
            path = at / "tokenizer.json"
            path.write_bytes(mutate_json(path.read_bytes(), draw))
        case 7:
            code = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
            (at / "evil.py").write_text("import os; os.mkdir(os.environ['SHOESTRING_EVIL'])")
            config = json.loads((at / "config.json").read_text())
            kind = draw.choice(("llama", "own", "gpt2", "qwen2", "mamba", "t5", "bert", config["model_type"]))
            (at / "config.json").write_text(json.dumps({**config, "auto_map": code, "model_type": kind}))
        case _:
            path = at / "config.json"
            path.write_bytes(mutate_json(path.read_bytes(), draw))


def _forged(content: bytes, draw: random.Random) -> bytes:
    """The weights with tensors missing, more, or of another shape or type."""
    tensors = load(content)
    for _ in range(draw.randint(1, 2)):
        name = draw.choice([*sorted(tensors), "more"])
        match draw.randrange(4):
            case 0:
                tensors.pop(name, None)
            case 1:
                shape = [draw.choice((0, 1, 2, 3, 64, 96)) for _ in range(draw.randrange(4))]
                tensors[name] = torch.ones(shape, dtype=draw.choice(TYPES))
            case 2 if name in tensors:
                tensors[name] = tensors[name].to(draw.choice(TYPES))
            case _ if name in tensors:
                tensors[draw.choice([*sorted(tensors), "more"])] = tensors[name].clone()
    return save({name: one.contiguous() for name, one in tensors.items()})
