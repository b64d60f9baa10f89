"""A chat template is damaged, or one that wants too much is put in: it gives a text of bounded size, or is refused in one line."""

import random
from pathlib import Path

from shoestring.data.chat_template import MOST_LETTERS, apply_chat
from tests.data.test_chat_template import HOSTILE, TALK, TEMPLATES
from tests.fuzz.explore import Case
from tests.fuzz.mutations import mutate_bytes, strange


def prepare(folder: Path) -> Case:
    nasty = [template for template, _ in HOSTILE.values()]
    templates = [*TEMPLATES.values(), *nasty]

    def case(draw: random.Random) -> None:
        template = draw.choice(templates)
        if draw.random() < 0.3:
            at = draw.randrange(len(template))
            template = template[:at] + draw.choice(nasty) + template[at:]
        template = mutate_bytes(template.encode(), draw).decode(errors="replace")
        messages = [dict(message) for message in TALK]
        if draw.random() < 0.3:
            draw.choice(messages)[draw.choice(("role", "content"))] = strange(draw)
        assert len(apply_chat(template, messages)) <= MOST_LETTERS

    return case
