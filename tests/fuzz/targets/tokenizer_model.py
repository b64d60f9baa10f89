"""A SentencePiece tokenizer.model is damaged: it gives ids whose bytes are counted, or is refused in one line."""

import random
import struct
from pathlib import Path

from shoestring.data import TextTokenizer
from tests.fuzz.explore import Case
from tests.fuzz.mutations import mutate_bytes

TEXT = "some text, été 日本 \n  x"


def message(*fields: tuple[int, bytes | int | float]) -> bytes:
    """A protocol buffer of these fields."""
    made = b""
    for number, value in fields:
        match value:
            case bytes():
                made += _whole(number << 3 | 2) + _whole(len(value)) + value
            case int():
                made += _whole(number << 3) + _whole(value)
            case _:
                made += _whole(number << 3 | 5) + struct.pack("<f", value)
    return made


def _whole(value: int) -> bytes:
    made = b""
    while value > 127:
        made += bytes([value & 127 | 128])
        value >>= 7
    return made + bytes([value])


def prepare(folder: Path) -> Case:
    path = folder / "tokenizer.model"
    special = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    words = ["▁", *"sometx,", "so", "me", "some", "▁some", "te", "xt", "text", "▁text"]
    pieces = [(text, kind, 0.0) for text, kind in special] + [(text, 1, -float(n)) for n, text in enumerate(words)]
    originals = []
    for model in (1, 2):
        listed = b"".join(
            message((1, message((1, text.encode()), (2, score), (3, kind)))) for text, kind, score in pieces
        )
        originals.append(listed + message((2, message((3, model), (35, 1), (42, 2))), (3, message((3, 1), (4, 0)))))

    def case(draw: random.Random) -> None:
        content = draw.choice(originals)
        path.write_bytes(mutate_bytes(content, draw, within=draw.choice((200, None))))
        tokenizer = TextTokenizer.load(path)
        found = tokenizer.encode(TEXT)
        tokenizer.decode(found)
        assert max(found, default=0) < tokenizer.vocabulary == len(tokenizer.token_bytes)
        tokenizer.byte_lengths[found].sum()

    return case
