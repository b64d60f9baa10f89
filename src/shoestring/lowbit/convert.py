"""A model's linear layers lowered to a number format, in place; and a lowered model as a plain one again."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from shoestring.errors import UsageError, did_you_mean
from shoestring.lowbit.activations import Activations
from shoestring.lowbit.format import Format
from shoestring.lowbit.linear import LowBitLinear

HEADS = ("head", "lm_head", "output", "embed_out")
"""Names of an output head at the top of a model, which stays in higher precision."""


@dataclass(frozen=True)
class Lowered:
    """What became of a model. lowered: the names of the linear layers that compute with quantised weights. kept: those of the
    linear and embedding layers that stay in higher precision. weights: quantised ones. parameters: all of the model."""

    lowered: tuple[str, ...]
    kept: tuple[str, ...]
    weights: int
    parameters: int

    def describe(self) -> str:
        """Both lists, numbers in the names as '*': '8 matrices, 98,304 of 163,840 parameters: ...'."""
        share = f"{self.weights:,} of {self.parameters:,} parameters"
        lowered, kept = ", ".join(grouped(self.lowered)), ", ".join(grouped(self.kept)) or "no matrix"
        return f"{len(self.lowered)} matrices, {share}: {lowered}\nin higher precision: {kept}, and vectors"


def grouped(names: Iterable[str]) -> list[str]:
    """Names with their numbers as '*', each once and with how many it stands for: 'blocks.*.token_mixer.qkv (6)'."""
    counts = Counter(re.sub(r"\b\d+\b", "*", name) for name in names)
    return [name + (f" ({count})" if count > 1 else "") for name, count in counts.items()]


def lower(model: nn.Module, format: Format, activations: Activations = "none", keep: Sequence[str] = ()) -> Lowered:
    """Replace the linear layers of `model` by `LowBitLinear`s, in place, under their names, with the same parameters.

    Embeddings, norms and the output head stay in higher precision: the head is what `get_output_embeddings()` returns, a
    layer at the top of the model with one of the names HEADS, or one whose weight is that of an embedding. keep: patterns
    ('blocks.0.*', '*.output') of the names of more layers that stay. A subclass of `nn.Linear` stays too, as its own
    `forward` is not known here. Layers that are one object stay one.

    Raises: UsageError, before anything is changed, where nothing is left to lower, a pattern matches no linear layer, or a
    matrix does not divide into the blocks of the format.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for pattern in keep:
        if not any(fnmatchcase(name, pattern) for name in linear):
            known = did_you_mean(pattern, linear)
            raise UsageError(f"keep = '{pattern}' is the name of no linear layer: {known}")
    stay = _embeddings(model) | _head(model)
    chosen = {
        name: module
        for name, module in linear.items()
        if type(module) is nn.Linear
        and name
        and id(module) not in stay
        and id(module.weight) not in stay
        and not any(fnmatchcase(name, pattern) for pattern in keep)
    }
    if not chosen:
        raise UsageError(f"{type(model).__name__} has no linear layer to lower, beside those kept in higher precision")
    made = {}
    for name, module in chosen.items():
        try:
            made[id(module)] = LowBitLinear.of(module, format, activations)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
    _replace(model, made)
    return lowered(model)


def lowered(model: nn.Module) -> Lowered:
    """What became of a model that `lower` was given; of any other, nothing is lowered."""
    matrices = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = {name: module for name, module in matrices.items() if isinstance(module, LowBitLinear)}
    kept = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    kept += [name for name in matrices if name not in chosen]
    weights = {id(module.weight): module.weight.numel() for module in chosen.values()}
    return Lowered(tuple(chosen), tuple(kept), sum(weights.values()), sum(p.numel() for p in model.parameters()))


def lowered_layers(model: nn.Module) -> Iterator[LowBitLinear]:
    """The lowered layers of `model`, each once."""
    return (module for module in model.modules() if isinstance(module, LowBitLinear))


@torch.no_grad()
def unpack(model: nn.Module) -> nn.Module:
    """`model` with plain linear layers again, in place, whose weights are the quantised numbers, in the type they had.

    What is left out is the rounding of activations. Raises: ShoestringError for a weight that is not finite.
    """
    made = {}
    for module in lowered_layers(model):
        plain = nn.Linear.__new__(nn.Linear)
        own = {key: value for key, value in vars(module).items() if key not in ("format", "activations", "active")}
        plain.__dict__.update(own | {"_parameters": dict(module._parameters)})
        plain.weight = nn.Parameter(module.computed_weight())
        made[id(module)] = plain
    _replace(model, made)
    return model


def _replace(model: nn.Module, made: dict[int, LowBitLinear] | dict[int, nn.Linear]) -> None:
    """Put made[id(m)] in the place of every submodule m."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in made:
                parent._modules[name] = made[id(child)]


def _embeddings(model: nn.Module) -> set[int]:
    """The identities of the weights of the embeddings."""
    return {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}


def _head(model: nn.Module) -> set[int]:
    """The identities of the output heads."""
    try:
        found = getattr(model, "get_output_embeddings", lambda: None)()
    except NotImplementedError:  # how transformers says that an architecture has none
        found = None
    return {id(module) for name, module in model.named_children() if name in HEADS} | {id(found)}
