"""A packed model is damaged, or forged with a checksum that agrees: it is read exactly, fulfilled, or refused in one line."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from shoestring.lowbit import container
from tests.fuzz.explore import Case
from tests.fuzz.mutations import mutate_bytes, mutate_json, mutate_value
from tests.lowbit.test_packed_container import CONFIG, model, same

TYPES = (torch.uint8, torch.int8, torch.float16, torch.float32, torch.int32, torch.bool)


def prepare(folder: Path) -> Case:
    path = folder / "model.safetensors"
    originals = []
    for bits, layout in ((4, "ternary2"), (8, "ternary1.6"), (16, "ternary2")):
        container.write(path, model(bits, layout), CONFIG)
        originals.append((path.read_bytes(), container.read(path)))

    def case(draw: random.Random) -> None:
        content, whole = draw.choice(originals)
        if draw.random() < 0.5:
            header = 8 + int.from_bytes(content[:8], "little")
            path.write_bytes(mutate_bytes(content, draw, within=header if draw.random() < 0.7 else None))
            assert _equal(container.read(path), whole), "a damaged file was accepted as another model"
        else:
            path.write_bytes(_forged(content, draw))
            found = container.read(path)
            held = [*found.others.values(), *(one for part in found.modules.values() for one in part.buffers())]
            assert sum(tensor.nbytes for tensor in held) <= 2 * path.stat().st_size, "more memory than the file has"
            container.outline(path)
            with torch.no_grad():
                for part in found.modules.values():
                    given = torch.zeros(1, part.in_features)
                    part(given if hasattr(part, "layout") else torch.zeros(1, dtype=torch.int64))
            container.install(path, found, model(packed=False))

    return case


def _equal(found: container.Contents, whole: container.Contents) -> bool:
    return (
        found.config == whole.config
        and same(found.others, whole.others)
        and found.modules.keys() == whole.modules.keys()
        and all(same(found.modules[name].state_dict(), whole.modules[name].state_dict()) for name in whole.modules)
    )


def _forged(content: bytes, draw: random.Random) -> bytes:
    """The file with another description, or other tensors, and mostly a checksum that agrees."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    described: Any = json.loads(header["__metadata__"][container.KEY])
    tensors = load(content)
    way = draw.random()
    if way < 0.15:
        return save(tensors, {container.KEY: mutate_json(json.dumps(described), draw).decode(errors="replace")})
    del described["sha256"]
    if way < 0.75:
        described = mutate_value(described, draw)
    if way > 0.6:
        for _ in range(draw.randint(1, 2)):
            name = draw.choice([*sorted(tensors), "more.packed", "more"])
            match draw.randrange(4):
                case 0:
                    tensors.pop(name, None)
                case 1:
                    shape = [draw.choice((0, 1, 2, 5, 6, 7, 9, 64)) for _ in range(draw.randrange(4))]
                    tensors[name] = torch.ones(shape, dtype=draw.choice(TYPES))
                case 2 if name in tensors and tensors[name].numel():
                    flat = tensors[name].contiguous().view(-1).view(torch.uint8)
                    flat[draw.randrange(len(flat))] = draw.randrange(256)
                case _ if name in tensors:
                    tensors[draw.choice([*sorted(tensors), "more"])] = tensors[name].clone()
    if isinstance(described, dict):
        try:
            described["sha256"] = container._digest(described, tensors)
        except (RecursionError, UnicodeEncodeError):
            described["sha256"] = "0" * 64
    try:
        text = json.dumps(described)
    except RecursionError:
        text = "[" * 3000
    return save(tensors, {container.KEY: text})
