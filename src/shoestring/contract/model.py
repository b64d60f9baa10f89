"""A language model as every engine sees it: it reads tokens, and its head makes logits of what it has read."""

import abc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from shoestring.contract.anatomy import Anatomy
from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Cache
from shoestring.contract.cost import Cost, Shape
from shoestring.errors import UsageError, did_you_mean

log = logging.getLogger(__name__)

Notes = dict[str, Tensor]
"""What layers tell beside their output, by name: how many tokens each expert took, a term of the loss."""


class Carried(NamedTuple):
    """The stream between two layers, [B, T, width], to which what the last part said is still to be added: stream + pending."""

    stream: Tensor
    pending: Tensor


def whole(x: Tensor | Carried) -> Tensor:
    """The stream with all that was said."""
    return x.stream + x.pending if isinstance(x, Carried) else x


LOSS = "loss."
"""How the name of a note begins that is a term of the loss, a scalar with its coefficient multiplied in."""


def add_notes(notes: Notes, more: Mapping[str, Tensor], place: str) -> None:
    """Take in the notes of a part. Those of one name add up: a part may be gone through several times.

    place: the name of the part, for those of one kind: 'blocks.3'.
    """
    for name, value in more.items():
        key = f"{LOSS}{place}.{name.removeprefix(LOSS)}" if name.startswith(LOSS) else f"{place}.{name}"
        notes[key] = notes[key] + value if key in notes else value


@contextmanager
def causally(model: object) -> Iterator[None]:
    """Within, parts that look at later tokens while they train (`looks_ahead = True`) do as they do when decoding. Nothing else
    changes its mode, so that what was compiled is not compiled again."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    ahead = [module for module in modules if getattr(module, "looks_ahead", False) and module.training]
    for module in ahead:
        module.training = False
    try:
        yield
    finally:
        for module in ahead:
            module.training = True


class Head(Protocol):
    """Makes logits of hidden states."""

    @property
    def weight(self) -> Tensor | None:
        """[V, width]: the logits are hidden @ weight.T, and nothing else. None where they are not, or there is no such matrix:
        packed, capped, or mixed of several models."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] from hidden states [..., width]."""
        ...

    def flops(self, places: int) -> int:
        """Operations of `logits` at so many places."""
        ...


class MatrixHead(NamedTuple):
    """A `Head` that is one matrix, [V, width]."""

    weight: Tensor

    def logits(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.weight)

    def flops(self, places: int) -> int:
        return 2 * places * self.weight.numel()


@dataclass(frozen=True)
class Reading:
    """What a model has read.

    hidden: [B, T, width], as the head takes them.
    head: makes logits of them.
    cost: of this pass, the head's products not among it.
    notes: what layers tell the objective, by name (how many tokens each expert took).
    tapped: the outputs of the modules that were asked for, by name.
    """

    hidden: Tensor
    head: Head
    cost: Cost
    notes: Mapping[str, Tensor] = field(default_factory=dict)
    tapped: Mapping[str, Tensor] = field(default_factory=dict)

    def logits(self) -> Tensor:
        """[B, T, V], of all places."""
        return self.head.logits(self.hidden)

    def auxiliary(self) -> Tensor | None:
        """The sum of the terms of the loss that layers told, to be differentiated; None where none did."""
        terms = [value for name, value in self.notes.items() if name.startswith(LOSS)]
        return torch.stack(terms).sum() if terms else None


Mixer = Callable[[Tensor], Tensor]
"""What a channel mixer adds to hidden states [..., width], its norm included: place by place."""


class Depth(Protocol):
    """Which layers a pass goes through, and which of their channel mixers: asked before each. A class that inherits from it mixes
    the channels of every place."""

    def times(self, layer: int, hidden: Tensor) -> int:
        """How often to apply layer number `layer` to the hidden states [B, T, width]: 0 skips it, 2 repeats it."""
        ...

    def channels(self, layer: int, hidden: Tensor, mix: Mixer) -> tuple[Tensor, Tensor | None]:
        """Of a layer that is applied: (what its channel mixer adds [B, T, width], the places [B, T] at which it was asked).

        hidden: [B, T, width], before the mixer. None in place of places: all. Elsewhere it adds nothing. A place that leaves it
        out still has keys and values in every layer, so nothing that comes later lacks any.
        """
        return mix(hidden), None


@dataclass(frozen=True)
class About:
    """The sizes of a model that an engine may need.

    vocabulary: V, tokens. context: the most tokens of a sequence. width: of the hidden states. layers: how many.
    causal: whether a token sees only those before it, so that there is a next token to be predicted.
    hides: whether it reads `HIDDEN`, a token that is not shown.
    """

    vocabulary: int
    context: int
    width: int
    layers: int
    causal: bool = True
    hides: bool = False


def require_causal(model: "LanguageModel", what: str) -> None:
    """Raises: UsageError for a model that sees both ways. what: asks for the next token."""
    if not model.about.causal:
        raise UsageError(
            f"{what} asks for the next token, and this model sees both ways: `shoestring generate PLACE` fills in its texts, and "
            "the run's own held-out figure is its bound"
        )


class LanguageModel(Protocol):
    """What every model is to every engine. The native `Transformer`, packed models, ensembles and wrapped ones are such."""

    @property
    def about(self) -> About:
        """Its sizes."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its inputs are wanted."""
        ...

    def read(
        self, inputs: Inputs, cache: Cache | None = None, *, tap: Sequence[str] = (), depth: Depth | None = None
    ) -> Reading:
        """Read `inputs`, as following what `cache` holds, which takes them in.

        tap: names of modules whose outputs are wanted. depth: which layers to go through; None: each once.
        Raises: UsageError when the tokens do not fit, and for what this model cannot do.
        """
        ...

    def new_cache(self, rows: int, room: int) -> Cache:
        """An empty cache for `rows` sequences of up to `room` tokens."""
        ...

    def cost(self, shape: Shape) -> Cost:
        """What a pass of this shape costs, head and backward pass included; the most it can, where that depends on the text."""
        ...


class LanguageModule(nn.Module, abc.ABC):
    """A `LanguageModel` that is a module: it can be trained, edited and saved. An ensemble is none."""

    @property
    @abc.abstractmethod
    def about(self) -> About:
        """Its sizes."""

    @property
    @abc.abstractmethod
    def device(self) -> torch.device:
        """Where its inputs are wanted."""

    @abc.abstractmethod
    def read(
        self, inputs: Inputs, cache: Cache | None = None, *, tap: Sequence[str] = (), depth: Depth | None = None
    ) -> Reading:
        """As `LanguageModel.read`."""

    @abc.abstractmethod
    def new_cache(self, rows: int, room: int) -> Cache:
        """As `LanguageModel.new_cache`."""

    @abc.abstractmethod
    def cost(self, shape: Shape) -> Cost:
        """As `LanguageModel.cost`."""

    @abc.abstractmethod
    def anatomy(self) -> Anatomy:
        """Its parts, as surgery sees them."""

    def forward(
        self,
        inputs: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """The logits [B, T, V] of the token after each of `inputs` [B, T]. positions, documents: as in `Inputs`."""
        return self.read(Inputs(inputs, positions, documents), cache).logits()

    def changed(self) -> None:
        """Forget what was worked out from the parts, as cached properties: to be called once parts were replaced. Casting, moving
        and freezing the whole model call it."""
        for kind in type(self).__mro__:
            for name, value in vars(kind).items():
                if isinstance(value, cached_property):
                    self.__dict__.pop(name, None)

    def __getstate__(self) -> dict[str, Any]:
        """Without cached properties: a copy works them out from its own parts."""
        cached = {
            name
            for kind in type(self).__mro__
            for name, value in vars(kind).items()
            if isinstance(value, cached_property)
        }
        return {name: value for name, value in self.__dict__.items() if name not in cached}

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        self.changed()
        super().requires_grad_(requires_grad)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.changed()
        super()._apply(fn, recurse)
        return self


@runtime_checkable
class Exits(Protocol):
    """A model whose head can be asked after any layer."""

    def leaving(self, stream: Tensor) -> Tensor:
        """Hidden states as the head takes them, of the stream [B, T, width] as a layer leaves it."""
        ...


@runtime_checkable
class Joins(Protocol):
    """A model that may read more of several rows in one pass, though each has a cache of its own."""

    def joined(self, caches: Sequence[Cache], new: Sequence[int]) -> Cache | None:
        """A cache for one packed pass over so many new tokens of each; None where they are to be read one after the other."""
        ...


@cache
def _say_uncompiled() -> None:
    log.warning("layers that are looked into run uncompiled, which is slower: what is compiled does not heed hooks")


@contextmanager
def uncompiled(module: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """While the modules of these names, and those that hold them, run as they were written: compiled ones do not heed hooks that
    were added after they were compiled. A warning says so once."""
    prefixes = {name[:end] for name in names for end in (*_dots(name), len(name))}
    held = [module.get_submodule(prefix) for prefix in sorted(prefixes)]
    found = [(one, call) for one in held if (call := vars(one).get("_compiled_call_impl")) is not None]
    if found:
        _say_uncompiled()
    try:
        for one, _ in found:
            one._compiled_call_impl = None
        yield
    finally:
        for one, call in found:
            one._compiled_call_impl = call


def _dots(name: str) -> list[int]:
    return [place for place, letter in enumerate(name) if letter == "."]


@contextmanager
def tapping(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collects the outputs of the modules of these names while the block runs. Raises: UsageError for an unknown name."""
    found: dict[str, Tensor] = {}
    if not names:
        yield found
        return
    known = dict(module.named_modules())

    def keep(name: str) -> "torch.utils.hooks.RemovableHandle":
        if name not in known:
            raise UsageError(f"no module is named '{name}': {did_you_mean(name, known)}")

        def hook(_: nn.Module, __: object, output: object) -> None:
            first: Any = output[0] if isinstance(output, tuple) and not isinstance(output, Carried) else output
            found[name] = whole(first if isinstance(first, Tensor | Carried) else first[0])

        return known[name].register_forward_hook(hook)

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        handles.extend(keep(name) for name in names)
        with uncompiled(module, names):
            yield found
    finally:
        for handle in handles:
            handle.remove()
