"""A GGUF file is damaged, or its metadata and tensors are forged: it opens as a model that reads, or is refused in one line."""

import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shoestring.base import open_model
from shoestring.base.gguf_file import GGUFFile, read_header
from shoestring.contract.batch import Inputs
from tests.base import making
from tests.fuzz.explore import Case
from tests.fuzz.mutations import mutate_bytes, strange

HUGE = (1 << 60, 1 << 32, 1 << 31, 0, 1, (1 << 64) - 1)


def prepare(folder: Path) -> Case:
    path, originals = folder / "a.gguf", list[tuple[bytes, int]]()
    for kind, model in (("Q4_1", "llama"), ("Q8_0", "qwen3"), ("F16", "gpt_neox")):
        made = making.stock(model, num_hidden_layers=1)
        making.write_gguf(made, path, kind, tokens=making.trained_tokens)
        first = min(one.start for one in read_header(path).tensors.values())
        originals.append((path.read_bytes(), first))

    def case(draw: random.Random) -> None:
        content, header = draw.choice(originals)
        way = draw.random()
        if way < 0.4:
            path.write_bytes(mutate_bytes(content, draw, within=draw.choice((64, 800, header, None))))
        elif way < 0.6:
            path.write_bytes(_numbers(content, header, draw))
        else:
            path.write_bytes(content)
            path.write_bytes(_forged(read_header(path), content, draw))
        opened = open_model(str(path))
        ids = [1, 2] if opened.tokenizer is None else opened.tokenizer.encode("some text")[:8] or [1]
        with torch.no_grad():
            opened.model.read(Inputs(torch.tensor([ids]))).logits()
        held = sum(one.nbytes for one in opened.model.parameters())  # type: ignore[attr-defined]
        assert held <= 20 * len(content), "more memory than the file has"

    return case


def _numbers(content: bytes, header: int, draw: random.Random) -> bytes:
    """The file with a number of eight bytes in its header that is another, of a length or a size above all."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 2)):
        at = draw.choice((8, 16, draw.randrange(24, header - 8)))
        changed[at : at + 8] = struct.pack("<Q", draw.choice(HUGE))
    return bytes(changed)


def _forged(file: GGUFFile, content: bytes, draw: random.Random) -> bytes:
    """The file with other values in its metadata, and other names, sizes, types or places of tensors."""
    metadata = dict(file.metadata)
    for _ in range(draw.randint(1, 3)):
        key = draw.choice(list(metadata))
        match draw.randrange(4):
            case 0:
                metadata.pop(key)
            case 1:
                metadata[key] = draw.choice(
                    (strange(draw), draw.choice(HUGE), 0.5, -1, "linear", "yarn", "gpt2", "llama", "t5")
                )
            case 2 if isinstance(metadata[key], list) and metadata[key]:
                metadata[key] = [
                    *metadata[key][: draw.randrange(len(metadata[key]))],
                    draw.choice(("", "a b", "▁", "a" * 3000)),
                ]
            case _:
                metadata[draw.choice(("llama.rope.scaling.type", "tokenizer.huggingface.json", "more"))] = "yarn"
    tensors: list[list[Any]] = [[one.name, list(one.shape), one.type, one.start] for one in file.tensors.values()]
    for _ in range(draw.randrange(3)):
        one = draw.choice(tensors)
        match draw.randrange(5):
            case 0:
                tensors.remove(one) if len(tensors) > 1 else None
            case 1:
                one[1] = draw.choice((one[1][::-1], one[1][:1], [*one[1], 1], [1 << 40, *one[1]], [0], [7, 5]))
            case 2:
                one[2] = draw.choice(("F32", "Q6_K", "Q4_0", "IQ1_S", "I8", "F64"))
            case 3:
                one[3] = draw.choice(tensors)[3]
            case _:
                one[0] = draw.choice((draw.choice(tensors)[0], "more", "rope_freqs.weight", "output.weight", ""))
    first = min(one.start for one in file.tensors.values())
    return _written(metadata, tensors, first, content[first:])


def _written(metadata: dict[str, Any], tensors: list[list[Any]], first: int, data: bytes) -> bytes:
    types = {kind.name: int(kind) for kind in making.gguf.GGMLQuantizationType}
    body = b""
    entries = 0
    for key, value in metadata.items():
        encoded = _value(value)
        if encoded is not None:
            body += _text(key) + encoded
            entries += 1
    for name, shape, kind, start in tensors:
        sizes = b"".join(struct.pack("<Q", size) for size in shape[::-1])
        body += _text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", types[kind], start - first)
    made = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), entries) + body
    return made + bytes(-len(made) % 32) + data


def _text(text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(content)) + content


def _value(value: Any) -> bytes | None:
    """A value with its type; None for one that the format has not."""
    if isinstance(value, np.ndarray):
        kinds = {"u1": 0, "i1": 1, "u2": 2, "i2": 3, "u4": 4, "i4": 5, "f4": 6, "b1": 7, "u8": 10, "i8": 11, "f8": 12}
        return struct.pack("<IIQ", 9, kinds[value.dtype.str[1:]], len(value)) + value.tobytes()
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int() if -(1 << 63) <= value < 1 << 63:
            return struct.pack("<Iq", 11, value)
        case int() if 0 <= value < 1 << 64:
            return struct.pack("<IQ", 10, value)
        case float():
            return struct.pack("<Id", 12, value)
        case str():
            return struct.pack("<I", 8) + _text(value)
        case list() if all(isinstance(one, str) for one in value):
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
    return None
