"""Control codes: what kind of text a document is stands before and after it, so that text of that kind can be asked for.

CTRL: A Conditional Transformer Language Model for Controllable Generation, arXiv:1909.05858; SweCTRL-Mini: a data-transparent
Transformer-based large language model for controllable text generation in Swedish, arXiv:2304.13994, which closes each document
too. Theirs are tokens of their own; here they are plain text, so that any tokenizer has them.
"""

from typing import Any

from shoestring.errors import UsageError


def opening(field: str, value: str) -> str:
    """What stands before a document, and what a prompt begins with: '[genre: letter]' and a line feed."""
    return f"[{field}: {value}]\n"


def closing(field: str, value: str) -> str:
    """What stands after a document: a line feed and '[/genre: letter]'."""
    return f"\n[/{field}: {value}]"


def controlled(document: str, field: str, value: Any, where: str) -> str:
    """The document between its codes; as it is where nothing is said of it.

    field: '' for none.
    value: what the document's field holds: text, a whole number, or None.
    where: of the document, for messages.
    Raises: UsageError for another value, or one of several lines.
    """
    if not field or value is None:
        return document
    if isinstance(value, bool) or not isinstance(value, str | int) or "\n" in str(value):
        raise UsageError(f"{where}: field '{field}' (data.control_field) is neither a line of text nor a whole number")
    return opening(field, str(value)) + document + closing(field, str(value))
