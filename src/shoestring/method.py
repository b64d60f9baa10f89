"""The registry of methods: a published technique is one class or function with a card beside it.

A method's options are the keyword-only parameters of its constructor, with their annotations and defaults; what the
engine supplies (parameters to optimise, a width) is positional. The options are checked against their annotations
whoever calls, so a plain PyTorch loop gets the same clear error as a recipe.
"""

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Annotated, Any, TypeVar

import pydantic
from annotated_types import Interval

from shoestring.errors import UsageError, did_you_mean

Positive = Annotated[float, Interval(gt=0, le=1e6)]
NonNegative = Annotated[float, Interval(ge=0, le=1e6)]
Epsilon = Annotated[float, Interval(gt=0, le=1)]
"""What keeps a division from dividing by zero."""
Fraction = Annotated[float, Interval(ge=0, le=1)]
Decay = Annotated[float, Interval(ge=0, lt=1)]
Count = Annotated[int, Interval(ge=1, le=2**31 - 1)]
Whole = Annotated[int, Interval(ge=0, le=2**31 - 1)]
Iterations = Annotated[int, Interval(ge=1, le=1000)]
"""How often something is repeated within one step, or until it is good enough."""
Seed = Annotated[int, Interval(ge=0, lt=2**63)]
Tokens = Annotated[float, Interval(ge=0, le=1e18)]
"""A number of tokens, of which a budget may hold very many."""

ENGINES = (
    "optim",
    "schedule",
    "data",
    "model",
    "objective",
    "sync",
    "lowbit",
    "quantise",
    "surgery",
    "tune",
    "shrink",
    "decode",
    "task",
    "route",
    "plan",
    "base.openers",
    "quantise.openers",
    "shrink.openers",
    "train.openers",
    "experts.openers",
)
"""The packages of `shoestring` that are searched for methods."""

INHERITED = "inherited"
"""The name of `**inherited`, by which a class says that it takes the options of its base, too, and passes them on."""

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Card:
    """What a method says of itself.

    engine: the engine whose interface it implements. name: as the field names it. paper: title and arXiv id, or ''
    for folklore. claim: what its source claims (not what was measured here: that is `evidence/`). cost: what it costs.
    kind: the slot within an engine that has several ('token mixer', 'norm' ...), or ''.
    """

    engine: str
    name: str
    paper: str
    claim: str
    cost: str
    kind: str
    target: Callable[..., Any]

    @property
    def summary(self) -> str:
        """The first line of the method's docstring."""
        return (inspect.getdoc(self.target) or "").partition("\n")[0]

    def options(self) -> type[pydantic.BaseModel]:
        """The model that checks this method's options: one field for each keyword-only parameter."""
        return _options(self.target)


_cards: dict[tuple[str, str, str], Card] = {}


@functools.cache
def _options(target: Callable[..., Any]) -> type[pydantic.BaseModel]:
    function: Any = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    hints = typing.get_type_hints(function, include_extras=True)
    made = {field.name: field for field in dataclasses.fields(target)} if dataclasses.is_dataclass(target) else {}
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            default: Any = ... if parameter.default is inspect.Parameter.empty else parameter.default
            field = made.get(parameter.name)
            if field is not None and field.default_factory is not dataclasses.MISSING:
                default = pydantic.Field(default_factory=field.default_factory)
            fields[parameter.name] = (hints.get(parameter.name, Any), default)
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD and parameter.name == INHERITED:
            fields = _inherited(target) | fields
    settings = pydantic.ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    return pydantic.create_model(target.__name__, __config__=settings, **fields)


def _inherited(target: Callable[..., Any]) -> dict[str, Any]:
    """The options of the class that `target` passes what it does not know on to, as pydantic takes them."""
    _, *above = inspect.getmro(typing.cast(type, target))
    base = next(kind for kind in above if "__init__" in vars(kind))
    return {name: (one.rebuild_annotation(), one) for name, one in _options(base).model_fields.items()}


def _checked(function: Callable[..., Any], target: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`function` with its keyword-only arguments checked (and converted) before the call."""

    @functools.wraps(function)
    def call(*positional: Any, **given: Any) -> Any:
        model = _options(target)
        ours = {key: value for key, value in given.items() if key in model.model_fields}
        try:
            checked = model(**ours)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{name}: {where} = {first['input']!r}: {first['msg']}") from None
        return function(*positional, **{**given, **{key: getattr(checked, key) for key in ours}})

    return call


def method(engine: str, *, name: str, claim: str, cost: str, paper: str = "", kind: str = "") -> Callable[[T], T]:
    """Register a class or function as the method `name` of `engine`. See `Card` for the words."""

    def register(target: T) -> T:
        key = (engine, kind, name)
        if key in _cards and _cards[key].target.__qualname__ != target.__qualname__:
            raise ValueError(f"{engine} already has a {kind or 'method'} named {name}: {_cards[key].target}")
        wrapped: Any
        if inspect.isclass(target):
            setattr(target, "__init__", _checked(target.__init__, target, name))  # noqa: B010 (mypy forbids the plain form)
            wrapped = target
        else:
            wrapped = _checked(target, target, name)
        _cards[key] = Card(engine, name, paper, claim, cost, kind, wrapped)
        return wrapped

    return register


@functools.cache
def _discover(engine: str) -> None:
    """Import every module of an engine's package that registers methods, and what other distributions register as
    `shoestring.methods`."""
    try:
        package = importlib.import_module(f"shoestring.{engine}")
    except ModuleNotFoundError as error:
        if error.name == f"shoestring.{engine}":
            return
        raise
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if _registers(module):
            importlib.import_module(module.name)
    for point in entry_points(group="shoestring.methods"):
        if point.name.split(".")[0] == engine:
            point.load()


def _registers(module: pkgutil.ModuleInfo) -> bool:
    """Whether a module's source calls `method`. The others need not be loaded: some need what is slow to load, as triton is."""
    finder: Any = module.module_finder
    spec = finder.find_spec(module.name, None)
    if spec is None or not str(spec.origin).endswith(".py"):
        return True
    with open(spec.origin, "rb") as source:
        return b"method(" in source.read()


@functools.cache
def _modules(engine: str) -> dict[str, list[str]]:
    """The modules of an engine's package by their last names, found without importing any but the package."""
    found: dict[str, list[str]] = {}
    package = importlib.util.find_spec(f"shoestring.{engine}")
    queue = [] if package is None else [(package.name, list(package.submodule_search_locations or ()))]
    while queue:
        above, paths = queue.pop()
        for module in pkgutil.iter_modules(paths):
            name = f"{above}.{module.name}"
            found.setdefault(module.name, []).append(name)
            if module.ispkg:
                queue.append((name, [os.path.join(path, module.name) for path in paths]))
    return found


def methods(engine: str | None = None, kind: str | None = None) -> list[Card]:
    """All cards, or those of one engine (and one kind of part within it), in order of engine, kind and name."""
    for name in ENGINES if engine is None else (engine,):
        _discover(name)
    chosen = [c for c in _cards.values() if engine in (None, c.engine) and kind in (None, c.kind)]
    return sorted(chosen, key=lambda c: (ENGINES.index(c.engine), c.kind, c.name))


def find(engine: str, name: str, kind: str = "") -> Card:
    """The card of a method by name. The module of that name is imported first, the others only where it has none.

    Raises: UsageError, with the nearest name, where there is none.
    """
    key = (engine, kind, name)
    if key not in _cards:
        for module in _modules(engine).get(name.replace("-", "_"), ()):
            importlib.import_module(module)
    if key in _cards:
        return _cards[key]
    cards = {card.name: card for card in methods(engine, kind)}
    if name not in cards:
        raise UsageError(f"no {kind or engine} method is named '{name}': {did_you_mean(name, cards)}")
    return cards[name]


def find_in(engines: Sequence[str], name: str, kind: str) -> Card:
    """The card of a method of this kind that any of these engines may have. Raises: UsageError where none has it."""
    for engine in engines:
        if name.replace("-", "_") in _modules(engine):
            try:
                return find(engine, name, kind)
            except UsageError:
                continue  # a module of that name which holds something else
    known = [card.name for engine in engines for card in methods(engine, kind)]
    if name in known:
        return next(card for engine in engines for card in methods(engine, kind) if card.name == name)
    raise UsageError(f"no {kind} is named '{name}': {did_you_mean(name, known)}")
