"""`--json`: what a command measured as one JSON object on standard output; what is said on the way goes to standard error."""

from typing import Any

from pydantic_core import to_json

from shoestring.cli.arguments import Arguments


def add_json_flag(parser: Arguments, what: str) -> None:
    """what: the object that is printed, in a few words."""
    parser.add_argument(
        "--json", action="store_true", help=f"print {what} as one JSON object; the rest goes to standard error"
    )


def print_json(found: Any) -> None:
    """Print plain values and dataclasses as JSON; a number that is not finite is null."""
    print(to_json(found, indent=2, inf_nan_mode="null", fallback=str).decode())
