"""What a parameter is to an optimiser: an open set of roles, each a kind of another.

A module that owns a parameter of a role of its own says so with a class attribute `roles`, from the parameter's name in the module
to the role: `roles = {"down": ADAPTER}`. Everything else has one of the four roles that `optim.partition` works out.
"""

from shoestring.errors import UsageError

_parents: dict[str, str | None] = {}
_decays: dict[str, bool] = {}


def declare(name: str, parent: str | None = None, *, decays: bool | None = None) -> str:
    """Declare a role. Returns its name.

    parent: the role that it is a kind of: what holds for that holds for it, where nothing is said of itself.
    decays: whether an optimiser's weight decay is for it; None: as of its parent, and True without one.
    """
    _parents[name] = parent
    if decays is not None:
        _decays[name] = decays
    return name


EMBEDDING = declare("embedding")
HEAD = declare("head")
MATRIX = declare("matrix")
VECTOR = declare("vector", decays=False)
ADAPTER = declare("adapter", MATRIX)
ROUTER = declare("router", MATRIX)
INPUT_SCALE = declare("input_scale", VECTOR, decays=True)
"""What scales the features that a matrix reads: the matrix could do the same, so that decay takes no capacity."""


def lineage(name: str) -> tuple[str, ...]:
    """The role, its parent, and so on. Raises: UsageError for a role that nobody declared."""
    if name not in _parents:
        raise UsageError(f"'{name}' is no role that was declared: {', '.join(sorted(_parents))}")
    found: list[str] = []
    place: str | None = name
    while place is not None:
        found.append(place)
        place = _parents[place]
    return tuple(found)


def decays(name: str) -> bool:
    """Whether an optimiser's weight decay is for parameters of this role. Raises: UsageError for a role that nobody declared."""
    return next((_decays[one] for one in lineage(name) if one in _decays), True)
