"""Why answers are right, written by teachers that are told the answers: what the objective `tinyllm` learns from."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from shoestring import atomic
from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.author import Author
from shoestring.data.answers import ExplainedQuestion

ASKED = "{shown}Question: {prompt}\nThe answer is: {answer}\nExplain in a few sentences why.\nExplanation:"
SHOWN = "Question: {prompt}\nThe answer is: {answer}\nExplanation: {why}\n\n"


def write_rationales(
    found: Sequence[ExplainedQuestion],
    teachers: Mapping[str, Author],
    path: Path,
    *,
    examples: int = 2,
    tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
) -> Charge:
    """Have each teacher explain the answer of each question, and write JSON lines with what questions had and the rationales.

    Yijun Tian et al., 2024, arXiv:2402.04616: a teacher is told the right answer, so that it explains that one ("teacher-forcing
    chain of thought"), and sees `examples` others with a rationale, drawn anew for each question from those that have one. An
    explanation that is empty, or was cut off, is left out. A teacher is asked once: what it wrote is kept in the file.

    teachers: by the names that the lines have. tokens: of an explanation at most. Returns what asking took.
    """
    spent, made = NOTHING, [dict(one.rationales) for one in found]
    for name, author in teachers.items():
        asked = [_asked(found, number, examples, seed) for number in range(len(found))]
        said = author.answers(asked, [seed + number for number in range(len(found))], tokens, temperature)
        spent += said.spent
        for own, answer in zip(made, said.texts, strict=True):
            if answer.whole and answer.text.strip():
                own[name] = answer.text.strip()
    rows = [
        {"prompt": one.prompt, "answer": one.answer, "rationales": own} for one, own in zip(found, made, strict=True)
    ]
    atomic.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return spent


def _asked(found: Sequence[ExplainedQuestion], number: int, examples: int, seed: int) -> str:
    """What a teacher is asked of a question: others with their explanations before it, as many as there are."""
    one, drawn = found[number], random.Random(f"{seed} {number}")
    able = [other for place, other in enumerate(found) if place != number and other.rationales]
    shown = "".join(
        SHOWN.format(prompt=other.prompt, answer=other.answer, why=drawn.choice(sorted(other.rationales.values())))
        for other in drawn.sample(able, min(examples, len(able)))
    )
    return ASKED.format(shown=shown, prompt=one.prompt, answer=one.answer)
