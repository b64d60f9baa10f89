"""What each key of a configuration means, taken from the docstrings of its sections and methods."""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from shoestring.budget.budget import Budget
from shoestring.config import Choice, Pick, to_toml
from shoestring.method import Card, find

TERMS = {
    "lr": "learning rate, where its schedule is at 1",
    "beta1": "decay, a step, of the running mean of gradients",
    "beta2": "decay, a step, of the running mean of squared gradients",
    "epsilon": "added to a divisor that may be near zero",
    "weight_decay": "share of each weight taken off a step, times the learning rate",
    "momentum": "decay, a step, of the running sum or mean of gradients",
    "nesterov": "whether the step looks ahead along the momentum",
    "polar": "how the polar factor of a matrix is computed",
    "steps": "iterations of the polar factor",
    "precision": "in which numbers the polar factor is computed",
    "compile": "whether the step is compiled",
    "seed": "of the random numbers it draws",
    "floor": "the factor on the learning rate at the end of the budget",
    "every": "steps between two of its updates",
}
"""Options that mean the same in every method that has them; a docstring that explains one itself goes first."""


ENOUGH = 200
"""Characters of an explanation, where it has sentences enough."""


def texts(documentation: str, names: Iterable[str]) -> dict[str, str]:
    """What a docstring says of each of the names, where it has `name: text` or `name, other: text`.

    A text goes on to the next name that is explained, or to the end of the paragraph.
    """
    known = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    if not known:
        return {}
    heading = re.compile(rf"(?:(?<=^)|(?<=\n)|(?<=[.;:)] ))((?:{known})(?:, (?:{known}))*)(?: \([^)]*\))?:\s")
    found: dict[str, str] = {}
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(documentation)):
        plain = "\n".join(line.strip() for line in paragraph.split("\n"))
        plain = re.split(r"(?:^|(?<=[.\n ]))Raises: ", plain)[0]
        headings = list(heading.finditer(plain))
        for place, match in enumerate(headings):
            stop = headings[place + 1].start() if place + 1 < len(headings) else len(plain)
            text = _beginning(" ".join(plain[match.end() : stop].split())).rstrip(".;")
            for name in match[1].split(", "):
                found.setdefault(name, text)
    return found


def _beginning(text: str) -> str:
    """The first sentences of a text, of about `ENOUGH` characters: what follows is often of the method and not of the option."""
    kept = ""
    for sentence in re.split(r"(?<=\.) (?=[A-Z])", text):
        if kept and len(kept) + len(sentence) > ENOUGH:
            break
        kept += (" " if kept else "") + sentence
    return kept


def options(card: Card) -> dict[str, str]:
    """What each option of a method means; '' where nothing says so."""
    names = card.options().model_fields
    target: Any = card.target
    kinds = inspect.getmro(target) if inspect.isclass(target) else (target,)
    # a parent from elsewhere (torch's optimisers) has words of its own for the same names
    kinds = tuple(kind for kind in kinds if kind.__module__.partition(".")[0] == target.__module__.partition(".")[0])
    documents = [document for kind in kinds for document in (kind.__doc__, _of_init(kind)) if document]
    found: dict[str, str] = {}
    for document in documents:
        found = texts(document, names) | found  # the method's own words go before its parents'
    return {name: found.get(name) or TERMS.get(name, "") for name in names}


def _of_init(kind: Any) -> str | None:
    own: Any = vars(kind).get("__init__") if inspect.isclass(kind) else None
    return own.__doc__ if inspect.isfunction(own) else None


def keys(configuration: Any) -> dict[str, str]:
    """What each key of a configuration means, by its dotted name: 'train.batch', 'optim.lr', 'edits.0.name'; '' where nothing
    says so."""
    names = [field.name for field in dataclasses.fields(configuration)]
    said = texts(type(configuration).__doc__ or "", names)
    found: dict[str, str] = {}
    for name in names:
        value = getattr(configuration, name)
        if dataclasses.is_dataclass(value) and not isinstance(value, Choice | Budget):
            below = keys(value)
        elif isinstance(value, Choice):
            below = _method(value.engine, value.kind, value.name, value.options)
        elif isinstance(value, tuple) and hasattr(
            value, "_fields"
        ):  # what goes with a method stands beside its options
            below = {key: text for part in value for key, text in _part(part).items()}
        elif isinstance(value, tuple):
            parts = [part for part in value if isinstance(part, Choice)]
            below = {f"{place}.{key}": text for place, part in enumerate(parts) for key, text in _part(part).items()}
        else:
            below = {}
        found |= {f"{name}.{key}": text for key, text in below.items()}
        found[name] = said.get(name, "")
    return found


def _part(value: Any) -> dict[str, str]:
    return _method(value.engine, value.kind, value.name, value.options) if isinstance(value, Choice) else keys(value)


def _method(engine: str, kind: str, name: str, given: Mapping[str, Any]) -> dict[str, str]:
    card = find(engine, name, kind)
    said = {"name": f"{card.summary.rstrip('.')} (others: shoestring methods {engine})", **options(card)}
    for option, field in card.options().model_fields.items():
        pick = next((each for each in field.metadata if isinstance(each, Pick)), None)
        chosen = given.get(option)
        if pick is not None and isinstance(chosen, Mapping):
            below = _method(pick.engine, pick.kind, str(chosen["name"]), chosen)
            said |= {f"{option}.{key}": text for key, text in below.items()}
    return said


def commented_toml(configuration: Any, width: int = 100) -> str:
    """The TOML text of a configuration, each key under a comment that explains it; `build` makes the same of it."""
    said = keys(configuration)
    lines: list[str] = []
    section = ""
    entries: dict[str, int] = {}
    for line in to_toml(configuration).split("\n"):
        table = re.fullmatch(r"\[\[?([\w.-]+)\]\]?", line)
        key = re.match(r"([\w-]+) = ", line)
        if table:
            first, dot, rest = table[1].partition(".")
            if line.startswith("[["):
                entries[first] = entries.get(first, -1) + 1
            section = f"{first}.{entries[first]}{dot}{rest}." if first in entries else f"{table[1]}."
        text = said.get(f"{section}{key[1]}" if key else re.sub(r"\.0$", "", section.rstrip(".")) if table else "", "")
        if text:
            lines += textwrap.wrap(text, width, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)
        lines.append(line)
    return "\n".join(lines)
