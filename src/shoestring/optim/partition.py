"""Which optimiser moves which parameter: every trainable parameter has a role and exactly one optimiser."""

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shoestring.config import Choice
from shoestring.errors import UsageError
from shoestring.optim.composite import Composite

Role = Literal["embedding", "head", "matrix", "vector"]
Recipe = Choice | Callable[..., torch.optim.Optimizer]
"""What makes an optimiser of parameter groups: a configured choice, a class, or a `functools.partial` of one."""

HEAD_NAMES = ("lm_head", "head", "output")


@dataclass(frozen=True)
class Member:
    """A trainable parameter, under the first of its names, with its role."""

    name: str
    role: Role
    parameter: nn.Parameter


@dataclass(frozen=True)
class Share:
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
            if role == "vector" and not decay_vectors:
                group["weight_decay"] = 0.0
            groups.append(group)
        return self.recipe.build(groups) if isinstance(self.recipe, Choice) else self.recipe(groups)


@dataclass(frozen=True)
class Partition:
    """Every trainable parameter of a model, once, shared out among optimisers in the order they were given."""

    shares: tuple[Share, ...]

    def describe(self) -> str:
        """Who got what, a line for each optimiser and role, with the names of the parameters below (`*`: a number)."""
        lines = []
        for share in self.shares:
            if not share.members:
                lines.append(f"{share.name}: nothing")
            for role in dict.fromkeys(member.role for member in share.members):
                members = [member for member in share.members if member.role == role]
                size = sum(member.parameter.numel() for member in members)
                tensors = f"{len(members)} tensor{'s' * (len(members) > 1)}"
                names = Counter(re.sub(r"\b\d+\b", "*", member.name) for member in members)
                lines.append(f"{share.name}: {role}, {tensors}, {size:,} parameters")
                lines += [f"    {name}" + (f" ({count})" if count > 1 else "") for name, count in names.items()]
        return "\n".join(lines)

    def build(self, *, decay_vectors: bool = False) -> Composite:
        """The optimisers as one, with a parameter group for each optimiser and role.

        Vectors (norm gains, biases) get no weight decay unless `decay_vectors`: decay on them shrinks what a norm
        scales by and saves no capacity. Optimisers that were given nothing are left out.
        """
        return Composite(*(share.build(decay_vectors) for share in self.shares if share.members))


def partition(model: nn.Module, *optimizers: Recipe) -> Partition:
    """Give each trainable parameter of `model` to the first of `optimizers` whose class's `accepts` holds its role.

    Raises: UsageError where no optimiser takes a role that the model has, or where an optimiser states no roles.
    """
    if not optimizers:
        raise UsageError("no optimiser was given for the parameters of the model")
    accepts = [_accepts(recipe) for recipe in optimizers]
    given: list[list[Member]] = [[] for _ in optimizers]
    for member in members(model):
        taker = next((index for index, roles in enumerate(accepts) if member.role in roles), None)
        if taker is None:
            names = ", ".join(_name(recipe) for recipe in optimizers)
            raise UsageError(f"{member.name} is of the role '{member.role}', which {names} does not take: add adamw")
        given[taker].append(member)
    if not any(given):
        raise UsageError(f"{type(model).__name__} has no trainable parameter")
    return Partition(tuple(Share(_name(r), r, tuple(m)) for r, m in zip(optimizers, given, strict=True)))


def members(model: nn.Module) -> list[Member]:
    """The trainable parameters in the model's order; one that is tied appears once, under its first name."""
    role = _roles(model)
    return [Member(name, role(p), p) for name, p in model.named_parameters() if p.requires_grad]


def role_of(model: nn.Module, parameter: Tensor) -> Role:
    """The role of a parameter of `model`.

    embedding: the weight of an `nn.Embedding`, or of what `get_input_embeddings()` returns, also where it is tied to
    the head. head: the weight of what `get_output_embeddings()` returns, or else of the last linear layer, if it is
    named lm_head, head or output and is in no numbered block. matrix: any other of two dimensions or more, those
    beyond the last two being a stack, as experts are kept. vector: the rest.
    """
    return _roles(model)(parameter)


def _roles(model: nn.Module) -> Callable[[Tensor], Role]:
    embeddings = {id(weight) for weight in _embeddings(model)}
    head = _head(model)

    def role(parameter: Tensor) -> Role:
        if id(parameter) in embeddings:
            return "embedding"
        if parameter is head:
            return "head"
        return "matrix" if parameter.ndim >= 2 else "vector"

    return role


def _embeddings(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            yield module.weight
    weight = _weight(model, "get_input_embeddings")
    if weight is not None:
        yield weight


def _head(model: nn.Module) -> Tensor | None:
    weight = _weight(model, "get_output_embeddings")
    linear = [(name.split("."), module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if weight is None and linear:
        path, last = linear[-1]
        if path[-1] in HEAD_NAMES and not any(part.isdecimal() for part in path):
            return last.weight
    return weight


def _weight(model: nn.Module, getter: str) -> Tensor | None:
    """The weight of the module that `model.getter()` returns; None where there is no such method or module."""
    try:
        found = getattr(model, getter, lambda: None)()
    except NotImplementedError:  # how transformers says that an architecture has none
        return None
    return found if isinstance(found, Tensor) else getattr(found, "weight", None)


def _class(recipe: Recipe) -> Any:
    if isinstance(recipe, Choice):
        return recipe.card.target
    return recipe.func if isinstance(recipe, functools.partial) else recipe


def _name(recipe: Recipe) -> str:
    return recipe.name if isinstance(recipe, Choice) else _class(recipe).__name__


def _accepts(recipe: Recipe) -> frozenset[str]:
    roles = getattr(_class(recipe), "accepts", None)
    if roles is None:
        raise UsageError(f"{_name(recipe)} does not say which roles it accepts: give its class an attribute `accepts`")
    return roles
