"""A file of chats is damaged in one place: its chats are learnt as they are, or one line of it is refused."""

import json
import random
from pathlib import Path

from shoestring.data.chat import Chat
from shoestring.data.chat_files import chat_lines, preference_lines
from tests.data.test_chats import TEMPLATE, im_end
from tests.fuzz.explore import Case
from tests.fuzz.mutations import mutate_bytes, mutate_json

LINES = (
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo <|im_end|>"}]},
    [{"role": "system", "content": "Be"}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Größe"}],
    {"prompt": "Hi", "completion": "Yo"},
    {"instruction": "Hi", "input": "there", "output": "Yo"},
)
PAIRS = ({"prompt": "Hi", "chosen": "Yo", "rejected": "No"}, {"chosen": LINES[1], "rejected": LINES[1]})


def prepare(folder: Path) -> Case:
    chat, path = Chat(TEMPLATE, im_end()), folder / "chats.jsonl"

    def case(draw: random.Random) -> None:
        pairs = draw.random() < 0.3
        lines = [json.dumps(draw.choice(PAIRS if pairs else LINES)).encode() for _ in range(3)]
        place = draw.randrange(3)
        lines[place] = (
            mutate_json(lines[place].decode(), draw) if draw.random() < 0.7 else mutate_bytes(lines[place], draw)
        )
        path.write_bytes(b"\n".join(lines))
        if pairs:
            for where, pair in preference_lines(str(path)):
                assert "line" in where
                assert pair.asked
            return
        for where, messages in chat_lines(str(path)):
            found = chat.learnt(messages)
            assert len(found.ids) == len(found.counted), where

    return case
