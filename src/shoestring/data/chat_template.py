"""Chat templates: a conversation as the text that a model was tuned on.

A template comes with the model, in Jinja, and may be anybody's. It runs in Jinja's sandbox, which gives it no way to files or to
code; here its loops, and the sizes of what it makes, are bounded too.
"""

import datetime
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shoestring.errors import UsageError, first_line

MOST_TURNS = 200_000
"""Passes through the bodies of a template's loops and macros, of all together."""

MOST_LETTERS = 16 << 20
"""Letters of a value, at most; each item counts for 16."""

MOST_TEMPLATE = 1 << 20
"""Letters of a template, at most."""

_WIDTH = re.compile(r"\d{5}|\*")
"""What in a format would make long texts of short ones."""


class TemplateError(Exception):
    """What a template raises, or does that it may not."""


def apply_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    answer: bool = True,
    tokens: Mapping[str, str] | None = None,
    **more: Any,
) -> str:
    """The text of a conversation, special tokens written out: `Tokenizer.encode_special` makes ids of it.

    messages: each with 'role' and 'content'.
    answer: whether the text ends where the model's answer begins.
    tokens: the special tokens by the names of transformers, as 'bos_token', which templates write.
    more: whatever else the template asks for.
    Raises: UsageError where the template is wrong, refuses the conversation, or takes too long.
    """
    given = {
        "messages": [dict(message) for message in messages],
        "add_generation_prompt": answer,
        **(tokens or {}),
        **more,
    }
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        given.setdefault(name, "")
    with _explained():
        compiled, clock = _compiled(template)
        clock.turns = 0
        pieces: list[str] = []
        length = 0
        for piece in compiled.generate(given):
            length += len(piece)
            if length > MOST_LETTERS:
                raise TemplateError(f"it makes more than {MOST_LETTERS:,} letters")
            pieces.append(piece)
    return "".join(pieces)


def check_template(template: str) -> None:
    """Raises: UsageError where this is no template."""
    with _explained():
        _compiled(template)


@contextmanager
def _explained() -> Iterator[None]:
    """What goes wrong with a template, in one line. Raises: UsageError."""
    try:
        yield
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(f"the chat template is wrong in line {error.lineno}: {first_line(error)}") from None
    except RecursionError:
        raise UsageError("the chat template cannot be used: it calls itself without end") from None
    except Exception as error:  # whatever a template does with values that are not as it expects
        raise UsageError(f"the chat template cannot be used: {first_line(error) or type(error).__name__}") from None


class _Generation(Extension):
    """`{% generation %}`: marks an assistant's words for whoever trains on them. Here it is its contents."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Clock(threading.local):
    """Counts the turns of loops, of each thread its own."""

    turns = 0

    def __call__(self) -> str:
        self.turns += 1
        if self.turns > MOST_TURNS:
            raise TemplateError(f"its loops go round more than {MOST_TURNS:,} times")
        return ""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with turns counted and sizes bounded."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, clock: _Clock) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            finalize=_bounded,
        )
        self.filters = {name: _guarded(one) for name, one in self.filters.items()}
        self.filters["tojson"] = _to_json
        self.globals.update(raise_exception=_raise, strftime_now=_now, _turn=clock, _joined=_joined)
        self.globals.pop("lipsum", None)

    def _generate(self, source: nodes.Template, name: Any, filename: Any, defer_init: bool = False) -> str:
        loop: Any
        for loop in source.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            turn = nodes.Call(nodes.Name("_turn", "load"), [], [], None, None)
            loop.body.insert(0, nodes.ExprStmt(turn).set_lineno(loop.lineno))
        _concatenations(source)
        made: str = super()._generate(source.set_environment(self), name, filename, defer_init)  # type: ignore[arg-type]
        return made

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and (abs(left) > 1 << 16 or abs(right) > 64):
            raise TemplateError("it raises large numbers to powers")
        if operator == "%" and isinstance(left, str) and _WIDTH.search(left):
            raise TemplateError("it formats with large widths")
        if operator == "*":
            sized = [one for one in (left, right) if not isinstance(one, int | float)]
            times = [abs(one) for one in (left, right) if isinstance(one, int | float)]
            if (
                sized
                and (len(sized[0]) if isinstance(sized[0], str) else _size(sized[0])) * max(times, default=1)
                > MOST_LETTERS
            ) or (not sized and max(times) > 1 << 62):
                raise TemplateError(f"it makes a value of more than {MOST_LETTERS:,} letters")
        if operator == "+" and _size(left) + _size(right) > MOST_LETTERS:
            raise TemplateError(f"it makes a value of more than {MOST_LETTERS:,} letters")
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Any:
        owner = getattr(value, "__self__", None)
        if isinstance(owner, str) and value.__name__ in ("format", "format_map") and _WIDTH.search(owner):
            raise TemplateError("it formats with large widths")
        return super().wrap_str_format(value)

    def call(self, context: Any, called: Any, *values: Any, **named: Any) -> Any:
        if isinstance(called, _Clock):
            return called()
        owner = getattr(called, "__self__", None)
        _refuse_large((owner if isinstance(owner, str | list | dict | tuple) else None, *values, *named.values()))
        return _bounded(super().call(context, called, *values, **named))


def _concatenations(source: nodes.Node) -> None:
    """Have every `~` go through `_joined`."""
    for parent in [source, *source.find_all(nodes.Node)]:
        for field, value in parent.iter_fields():
            if isinstance(value, nodes.Concat):
                setattr(parent, field, _call_of(value))
            elif isinstance(value, list):
                value[:] = [_call_of(one) if isinstance(one, nodes.Concat) else one for one in value]


def _call_of(joined: nodes.Concat) -> nodes.Call:
    return nodes.Call(nodes.Name("_joined", "load"), joined.nodes, [], None, None).set_lineno(joined.lineno)  # type: ignore[return-value]


def _joined(*values: Any) -> str:
    return str(_bounded("".join(str(_bounded(value)) for value in values)))


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that takes and gives values of bounded sizes."""

    def filtered(*values: Any, **named: Any) -> Any:
        _refuse_large((*values, *named.values()))
        return _bounded(function(*values, **named))

    if hasattr(function, "jinja_pass_arg"):  # whether it wants the environment first
        filtered.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return filtered


def _refuse_large(values: Sequence[Any]) -> None:
    """Raises: TemplateError for numbers, or for texts and lists that multiplied with each other, would make too much."""
    product = 1
    for value in values:
        if isinstance(value, int) and abs(value) > MOST_LETTERS // 16 and not isinstance(value, bool):
            raise TemplateError("it calls functions with large numbers")
        if isinstance(value, str | list | tuple | dict):
            product *= max(1, _size(value))
    if product > 1 << 34:
        raise TemplateError("it calls functions with long texts")


def _bounded(value: Any) -> Any:
    """The value. Raises: TemplateError where it is too large."""
    if _size(value) > MOST_LETTERS:
        raise TemplateError(f"it makes a value of more than {MOST_LETTERS:,} letters")
    return value


def _size(value: Any) -> int:
    """Letters of a value, and 16 for each item, those within it too; it stops counting where they are too many."""
    total, left = 0, [value]
    while left and total <= MOST_LETTERS:
        one = left.pop()
        total += 16
        if isinstance(one, str | bytes):
            total += len(one)
        elif isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            left += one
    return total


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    """As transformers has it: without the escapes of HTML."""
    _bounded(value)
    if indent is not None and not 0 <= int(indent) <= 16:
        raise TemplateError("it indents by large numbers")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=more.get("separators"))


def _raise(message: str) -> None:
    raise TemplateError(str(message)[:200])


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(str(form)[:100])


@lru_cache(maxsize=8)
def _compiled(template: str) -> tuple[jinja2.Template, _Clock]:
    if len(template) > MOST_TEMPLATE:
        raise TemplateError(f"it has {len(template):,} letters, and {MOST_TEMPLATE:,} are the most that is taken")
    clock = _Clock()
    return _Sandbox(clock).from_string(template), clock
