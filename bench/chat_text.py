"""Chats that every machine with the libraries of this project can make: what a function of theirs does, as its documentation says.

No chat is of the standard library, which other benches read as text of old.
"""

import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

from shoestring import atomic

MODULES = (
    *("numpy", "numpy.linalg", "numpy.fft", "numpy.random", "numpy.polynomial.polynomial", "numpy.ma", "numpy.strings"),
    *(
        "scipy.stats",
        "scipy.signal",
        "scipy.linalg",
        "scipy.special",
        "scipy.optimize",
        "scipy.ndimage",
        "scipy.sparse",
    ),
    *("scipy.interpolate", "scipy.integrate", "scipy.spatial.distance", "scipy.cluster.hierarchy", "scipy.fft"),
    *("torch", "torch.nn", "torch.nn.functional", "torch.linalg", "torch.fft", "torch.special", "torch.optim"),
)
SHORTEST, LONGEST = 40, 1200
"""Characters of an answer."""

QUESTIONS = (
    "What does {name} do?",
    "I found {name} in some code. What is it for?",
    "When would I use {name}?",
    "Explain {name} to me.",
)
HEADING = re.compile(
    r"^[A-Z][A-Za-z ]+:?\n(-{3,}|={3,})$|^(Args|Arguments|Parameters|Returns|Examples?|Keyword args)\b", re.M
)
SIGNATURE = re.compile(r"^[\w.]+\(.*?\)( *->.*)?\n+", re.S)


def answer(documentation: str) -> str:
    """What documentation says before it lists parameters; '' where that is little or long."""
    text = SIGNATURE.sub("", inspect.cleandoc(documentation), count=1)
    found = HEADING.search(text)
    told = re.sub(r"\n{2,}", "\n\n", text[: found.start()] if found else text).strip()
    return told if SHORTEST <= len(told) <= LONGEST and told[0].isalpha() else ""


def chats() -> Iterator[list[dict[str, str]]]:
    """The messages of each chat, in an order that does not depend on memory; no answer comes twice."""
    told = set[str]()
    for module in MODULES:
        found = importlib.import_module(module)
        for name in sorted(vars(found)):
            member = getattr(found, name)
            if name.startswith("_") or not callable(member):
                continue
            documentation = getattr(member, "__doc__", None)
            said = answer(documentation) if isinstance(documentation, str) else ""
            if not said or said in told:
                continue
            told.add(said)
            question = QUESTIONS[len(told) % len(QUESTIONS)].format(name=f"{module}.{name}")
            yield [{"role": "user", "content": question}, {"role": "assistant", "content": said}]


def write(path: Path) -> int:
    """Write them, a line each; returns how many."""
    lines = [json.dumps({"messages": each}) for each in chats()]
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, "\n".join(lines) + "\n")
    return len(lines)
