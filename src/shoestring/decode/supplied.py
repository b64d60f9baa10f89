"""Methods that need what no option can hold: a model, the place of what was trained for them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from shoestring.errors import UsageError
from shoestring.method import find

WHAT = {
    "target": "the model that writes",
    "draft": "a draft model",
    "place": "the file that was made for it",
    "texts": "text, or a task",
    "decode": "a tokenizer",
    "ends": "a tokenizer",
}
"""What a drafter, an acceptance or a scheduler may name as a positional parameter."""


def needs(target: Callable[..., Any]) -> tuple[str, ...]:
    """What a method must be given beside its options: the names of its positional parameters, of those in `WHAT`."""
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return tuple(name for name, each in inspect.signature(target).parameters.items() if each.kind in kinds)


def supplied(kind: str, name: str, supplies: Mapping[str, Callable[[], Any]], **options: Any) -> Any:
    """A method of this kind of `decode`, made of what it needs and its options.

    supplies: by name as in `WHAT`, what gives it; asked only where the method needs it.
    Raises: UsageError where something is needed that nothing gives.
    """
    target = find("decode", name, kind).target
    given = []
    for need in needs(target):
        if need not in supplies:
            raise UsageError(f"the {kind} '{name}' needs {WHAT.get(need, need)}, and none is given")
        given.append(supplies[need]())
    return target(*given, **options)
