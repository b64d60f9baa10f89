"""Which optimiser moves which parameter: every trainable parameter has a role and exactly one optimiser."""

import functools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.config import Choice
from shoestring.contract.role import decays, lineage
from shoestring.errors import UsageError, did_you_mean
from shoestring.method import methods
from shoestring.optim.composite import Composite

Recipe = Choice | Callable[..., torch.optim.Optimizer]
"""What makes an optimiser of parameter groups: a configured choice, a class, or a `functools.partial` of one."""

HEAD_NAMES = ("lm_head", "head", "output")
NO_HEAD = ""
"""What `head=` takes for a model that has no output head."""


@dataclass(frozen=True)
class Member:
    """A trainable parameter, under the first of its names, with its role."""

    name: str
    role: str
    parameter: nn.Parameter


@dataclass(frozen=True)
class Assignment:
    """What one optimiser is given."""

    name: str
    recipe: Recipe
    members: tuple[Member, ...]

    def build(self, decay_vectors: bool) -> torch.optim.Optimizer:
        """The optimiser, with one group for each role it was given."""
        groups = []
        for role in dict.fromkeys(member.role for member in self.members):
            named = [(member.name, member.parameter) for member in self.members if member.role == role]
            group: dict[str, Any] = {"params": named, "role": role}
            if not (decays(role) or decay_vectors):
                group["weight_decay"] = 0.0
            groups.append(group)
        return self.recipe.build(groups) if isinstance(self.recipe, Choice) else self.recipe(groups)


@dataclass(frozen=True)
class Partition:
    """Every trainable parameter of a model, once, shared out among optimisers in the order they were given."""

    shares: tuple[Assignment, ...]

    def describe(self) -> str:
        """Who got what, a line for each optimiser and role, with the names of the parameters below.

        `*` stands for a number, but not at the beginning of a name, where it tells the layers of an `nn.Sequential`.
        """
        lines = []
        for share in self.shares:
            if not share.members:
                lines.append(f"{share.name}: nothing")
            for role in dict.fromkeys(member.role for member in share.members):
                members = [member for member in share.members if member.role == role]
                size = sum(member.parameter.numel() for member in members)
                tensors = f"{len(members)} tensor{'s' * (len(members) > 1)}"
                names = Counter(re.sub(r"(?<=\.)\d+\b", "*", member.name) for member in members)
                lines.append(f"{share.name}: {role}, {tensors}, {size:,} parameters")
                lines += [f"    {name}" + (f" ({count})" if count > 1 else "") for name, count in names.items()]
        return "\n".join(lines)

    def build(self, *, decay_vectors: bool = False) -> Composite:
        """The optimisers as one, with a parameter group for each optimiser and role.

        Vectors (norm gains, biases) get no weight decay unless `decay_vectors`: decay on them shrinks what a norm
        scales by and saves no capacity. A kind of them whose role `decays` gets it. Optimisers that were given nothing are
        left out.
        """
        return Composite(*(share.build(decay_vectors) for share in self.shares if share.members))


def partition(model: nn.Module, *optimizers: Recipe, head: str | None = None) -> Partition:
    """Give each trainable parameter of `model` to the first of `optimizers` that accepts its role (see `role_of`).

    optimizers: classes, `functools.partial`s of classes, or configured choices. Each class has `accepts`, a set of roles,
    each of which stands for its kinds too (`contract.role`), and may have `refuses`, a set of kinds that it does not take.
    head: a pattern (as of `fnmatch`) of the names of the output head's parameters; '' where the model has no head; None
    looks for it.

    Warns where no head is found and the last linear layer, which may be one, goes to an optimiser that takes no head.
    Raises: UsageError where no optimiser takes a role that the model has, where an optimiser states no roles, or where
    `head` matches no parameter.
    """
    if not optimizers:
        raise UsageError("no optimiser was given for the parameters of the model")
    accepts = [_accepts(recipe) for recipe in optimizers]
    refuses: list[frozenset[str]] = [getattr(optimizer_class(recipe), "refuses", frozenset()) for recipe in optimizers]
    given: list[list[Member]] = [[] for _ in optimizers]
    unsure = _possible_head(model) if head is None else None
    for member in members(model, head):
        kinds = lineage(member.role)
        takers = (i for i, roles in enumerate(accepts) if roles.intersection(kinds) and member.role not in refuses[i])
        taker = next(takers, None)
        if taker is None:
            names = ", ".join(_name(recipe) for recipe in optimizers)
            raise UsageError(f"{member.name} is of the role '{member.role}', which {names} does not take: add adamw")
        given[taker].append(member)
        if member.parameter is unsure and "head" not in accepts[taker]:
            warnings.warn(
                f"no output head was found: {member.name}, of the last linear layer, goes to {_name(optimizers[taker])}. "
                f"If it is the head, say partition(..., head='{member.name}'); if there is none, head=''",
                stacklevel=2,
            )
    if not any(given):
        raise UsageError(f"{type(model).__name__} has no trainable parameter")
    return Partition(tuple(Assignment(_name(r), r, tuple(m)) for r, m in zip(optimizers, given, strict=True)))


def members(model: nn.Module, head: str | None = None) -> list[Member]:
    """The trainable parameters in the model's order; one that is tied appears once, under its first name.

    head: as for `partition`. Raises: UsageError where it matches no parameter.
    """
    role = _roles(model, head)
    return [Member(name, role(p), p) for name, p in model.named_parameters() if p.requires_grad]


def role_of(model: nn.Module, parameter: Tensor) -> str:
    """The role of a parameter of `model`.

    embedding: the weight of an `nn.Embedding`, or of what `get_input_embeddings()` returns, also where it is tied to
    the head. head: the weight of what `get_output_embeddings()` returns. Where the model has no such method, the weight of
    the last linear layer, if that layer is in no numbered block and is named lm_head, head or output; or if it is in no
    block that repeats and has as many outputs as an embedding has rows. matrix: any other of two dimensions or more,
    those beyond the last two being a stack, as experts are kept. vector: the rest.
    """
    return _roles(model)(parameter)


def _roles(model: nn.Module, head: str | None = None) -> Callable[[Tensor], str]:
    embeddings = {id(weight) for weight in _embeddings(model)}
    heads = {id(parameter) for parameter in (_named(model, head) if head is not None else [_head(model)])}
    own = {
        id(getattr(module, name)): role
        for module in model.modules()
        for name, role in getattr(module, "roles", {}).items()
    }

    def role(parameter: Tensor) -> str:
        if id(parameter) in own:
            return own[id(parameter)]
        if id(parameter) in embeddings:
            return "embedding"
        if parameter.ndim < 2:
            return "vector"
        return "head" if id(parameter) in heads else "matrix"

    return role


def _named(model: nn.Module, pattern: str) -> list[Tensor]:
    """The parameters whose name matches; none for ''. Raises: UsageError where a pattern matches none."""
    if pattern == NO_HEAD:
        return []
    # a tied parameter may be called by any of its names
    named = dict(model.named_parameters(remove_duplicate=False))
    found: list[Tensor] = [parameter for name, parameter in named.items() if fnmatchcase(name, pattern)]
    if not found:
        raise UsageError(f"head = '{pattern}' is the name of no parameter: {did_you_mean(pattern, named)}")
    return found


def _embeddings(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            yield module.weight
    weight = _weight(model, "get_input_embeddings")
    if weight is not None:
        yield weight


def _head(model: nn.Module) -> Tensor | None:
    """The weight of the output head, as far as the model tells."""
    if hasattr(model, "get_output_embeddings"):
        return _weight(model, "get_output_embeddings")
    path, last = _last_linear(model)
    if last is None:
        return None
    if path[-1] in HEAD_NAMES and not any(part.isdecimal() for part in path):
        return last.weight
    rows = {module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    return last.weight if last.out_features in rows and not _repeats(model, path) else None


def _possible_head(model: nn.Module) -> Tensor | None:
    """The weight of the last linear layer where it may be an output head and nothing tells that it is."""
    if hasattr(model, "get_output_embeddings") or _head(model) is not None:
        return None
    path, last = _last_linear(model)
    return last.weight if last is not None and not _repeats(model, path) else None


def _last_linear(model: nn.Module) -> tuple[list[str], nn.Linear | None]:
    """(its path in the model, the linear layer that comes last)."""
    linear = [(name.split("."), module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else ([], None)


def _repeats(model: nn.Module, path: list[str]) -> bool:
    """Whether a linear layer has the same place in another of several numbered blocks."""

    def place(path: list[str]) -> list[str]:
        return ["*" if part.isdecimal() else part for part in path[:-1]] + path[-1:]

    others = (name.split(".") for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return any(place(other) == place(path) for other in others if other != path)


def _weight(model: nn.Module, getter: str) -> Tensor | None:
    """The weight of the module that `model.getter()` returns; None where there is no such method or module."""
    try:
        found = getattr(model, getter, lambda: None)()
    except NotImplementedError:  # how transformers says that an architecture has none
        return None
    return found if isinstance(found, Tensor) else getattr(found, "weight", None)


def optimizer_class(recipe: Recipe) -> Any:
    """The class that a recipe makes an optimiser of."""
    if isinstance(recipe, Choice):
        return recipe.card.target
    return recipe.func if isinstance(recipe, functools.partial) else recipe


def _name(recipe: Recipe) -> str:
    return recipe.name if isinstance(recipe, Choice) else optimizer_class(recipe).__name__


def _accepts(recipe: Recipe) -> frozenset[str]:
    given = optimizer_class(recipe)
    if isinstance(given, torch.optim.Optimizer):
        raise UsageError(
            f"an optimiser that is made already cannot be given parameters: give its class, {_full_name(type(given))}"
        )
    roles = getattr(given, "accepts", None)
    if roles is None:
        ours = next((card for card in methods("optim") if card.target.__name__ == _name(recipe)), None)
        instead = f"use shoestring.optim.{ours.target.__name__}, or give" if ours else "give"
        raise UsageError(
            f"{_full_name(given)} does not say which parameters it takes: {instead} a subclass with an attribute `accepts`, "
            "a set of 'embedding', 'head', 'matrix' and 'vector'"
        )
    return frozenset(roles)


def _full_name(optimizer: Any) -> str:
    """'torch.optim.AdamW', as its users import it."""
    module, name = getattr(optimizer, "__module__", ""), getattr(optimizer, "__name__", str(optimizer))
    return f"torch.optim.{name}" if module.startswith("torch.optim.") else f"{module}.{name}"
