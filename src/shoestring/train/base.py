"""A run's model that exists already: its shape, its tokenizer, and the model itself."""

import hashlib
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shoestring.base import Opened, open_model, peek, take
from shoestring.base.opened import PACKED
from shoestring.budget.machine import cache_folder
from shoestring.config import Tree, build, merge, tables, tree
from shoestring.contract.model import LanguageModel, LanguageModule
from shoestring.data.places import absolute_path
from shoestring.errors import ShoestringError, UsageError
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer

if TYPE_CHECKING:
    from shoestring.train.config import RunConfig

OWN = ("base", "digest", "context", "packed")
"""Keys of [model] that a run on a base may set: the others are the base's."""

WINDOW = 512
"""Tokens of a window, where nothing is said, for a base whose context is longer."""

TUNING: Tree = {
    "optim": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.01},
    "fallback": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.01},
    "schedule": {"name": "wsd", "decay": 0.5},
    "train": {"warmup": 0.1},
}
"""What a run on a base has in place of the plan's rules, which are for models from scratch: the rates at which pretrained models
of this size are tuned in full by AdamW."""

CHATS: Tree = {"data": {"packing": "whole", "heldout": 0.1}, "train": {"sample_tokens": 0}}
"""What a run on chats has beside: they are few, and what one begins with is its template's."""


def with_base(asked: Tree, continued: bool = False) -> Tree:
    """What was asked for, with the shape and the tokenizer of the base that it names, and what suits training one.

    continued: the base is a run, which goes on with its optimiser's state: as planned, and as its rule of transfer says.
    Raises: UsageError where the base cannot be opened, or another shape or tokenizer is asked for.
    """
    model: Mapping[str, Any] = asked["model"]
    if not continued and asked.get("transfer", "standard") not in ("standard", {"name": "standard"}):
        raise UsageError(
            "a rule of transfer sets the first weights of a model, and this one has weights: leave transfer out"
        )
    place = str(model["base"])
    if Path(place).expanduser().exists():
        place = absolute_path(place)
    opened = peek(place, bool(model.get("packed", False)))
    if continued and opened.about.kind != "run":
        raise UsageError(f"train.base_optimizer: {place} is no run and has no optimiser's state: leave it out")
    if opened.tokenizer is None:
        raise UsageError(f"{place} has no tokenizer, and its tokens are not known without one")
    # an option of an edit of this name is how many tokens the model reads from then on
    extended = [str(one.get("context", 0)) for one in tables(asked.get("edits", []))]
    most = max([opened.model.about.context, *(int(one) for one in extended if one.isdecimal())])
    shape = _shape(opened)
    _require_shape(dict(model), shape, place)
    shape |= {"base": place, "digest": opened.about.digest}
    shape["context"] = int(model.get("context", min(opened.model.about.context, WINDOW)))
    if shape["context"] > most:
        raise UsageError(
            f"model.context = {shape['context']}: {place} reads {most} tokens at most; an edit such as longgen extends that"
        )
    template = opened.about.chat_template
    name = opened.tokenizer.fingerprint
    if template is not None:  # models of one tokenizer may have templates of their own
        name += f"-{hashlib.sha256(template.encode()).hexdigest()[:16]}"
    folder, opened.tokenizer.chat_template = cache_folder() / "tokenizers" / name, template
    if not (folder / "tokenizer.json").exists():
        opened.tokenizer.save(folder)
    given = asked.get("data", {}).get("tokenizer")
    its: Any = opened.about.values.get("data", {})  # of a run
    if given not in (None, str(folder), its.get("tokenizer")):
        raise UsageError(f"data.tokenizer = {given}: a run on a base has the base's own tokenizer, so leave it out")
    suits = {} if continued else TUNING
    if asked.get("data", {}).get("kind") == "chat":
        suits = merge(suits, CHATS)
    return merge(merge(suits, asked), {"model": shape, "data": {"tokenizer": str(folder)}})


def _require_shape(asked: Tree, shape: Tree, place: str) -> None:
    """Raises: UsageError where [model] asks for something that its base has not."""
    given = {key: value for key, value in asked.items() if key not in OWN}
    ours = tree(build(ModelConfig, merge(shape, given))) if given else {}
    for key, value in given.items():
        if key not in shape or ours[key] != shape[key]:
            raise UsageError(
                f"model.{key} = {value} is not what {place} has: leave it out, and the model is of the base's shape"
            )


def _shape(opened: Opened) -> Tree:
    """The [model] section of an opened model. Of one that is not native the sizes are told, and the parts have no meaning."""
    if isinstance(opened.model, Transformer):
        return {key: value for key, value in tree(opened.model.config).items() if key not in OWN}
    about = opened.model.about
    return {"layers": about.layers, "width": about.width, "heads": 1, "vocabulary": about.vocabulary}


def is_native(config: ModelConfig) -> bool:
    """Whether the run's model is a `Transformer`, whose parts can be timed and chosen."""
    return not config.base or isinstance(peek(config.base, config.packed).model, Transformer)


def build_model(config: ModelConfig) -> LanguageModule:
    """The run's model in float32: the base that it names, or a new one from torch's global generator.

    Raises: UsageError, ShoestringError where the base is not there, or is another one than the run began with.
    """
    if not config.base:
        return Transformer(config)
    opened = take(config.base, config.packed)
    if config.digest and opened.about.digest != config.digest:
        raise ShoestringError(
            f"{config.base} is not the model that this run began with: its weights or its shape are others"
        )
    model = opened.model
    if not isinstance(model, LanguageModule):
        raise UsageError(f"{config.base} can be used, and not be trained: it is {opened.about.kind}")
    model.requires_grad_(True).train()
    return model


def teacher_of(config: "RunConfig", place: str, tokens: str | None = None) -> LanguageModel:
    """The model that an objective asks, on the run's device. place: of it; '': the run's base, as it is without edits.

    tokens: the fingerprint of the run's tokenizer; None: not compared.
    Raises: UsageError where neither is given, or it reads other tokens; what opening it raises.
    """
    named, place = bool(place), place or config.model.base
    if not place:
        raise UsageError(
            f"objective = {config.objective.name} learns from another model: name one with --objective.teacher PLACE, "
            "or train on one with --model.base PLACE"
        )
    own = not named and config.model.packed
    opened = open_model(place, PACKED if own else torch.float32)
    if named and tokens is not None and (opened.tokenizer is None or opened.tokenizer.fingerprint != tokens):
        raise UsageError(
            f"the teacher {place} has another tokenizer than this run: a teacher of the same tokens is needed"
        )
    model = opened.model
    if isinstance(model, LanguageModule):
        model.requires_grad_(False).eval().to(config.execution.device)
    return model


def kept_of(model: LanguageModule, weights: Mapping[str, Tensor], config: "RunConfig") -> dict[str, Tensor]:
    """Of a model's weights, those that a checkpoint holds: on a base, all but the frozen ones, which the base has."""
    if not config.model.base:
        return dict(weights)
    frozen = frozen_of(model)
    return {name: tensor for name, tensor in weights.items() if name not in frozen}


def with_frozen(model: LanguageModule, kept: Mapping[str, Tensor], config: "RunConfig") -> Mapping[str, Tensor]:
    """The weights that `kept_of` made `kept` of, the frozen ones from the model as it is. None is read before it is asked for."""
    if not config.model.base:
        return kept
    frozen = frozen_of(model)
    own = {name: tensor for name, tensor in model.state_dict().items() if name in frozen and name not in kept}
    return ChainMap(own, kept)  # type: ignore[arg-type]  # nobody writes in it


@torch.no_grad()
def put_weights(model: LanguageModule, weights: Mapping[str, Tensor]) -> None:
    """As `model.load_state_dict`, tensor by tensor: no second copy of all weights is made.

    Raises: RuntimeError where they are not of this model.
    """
    here = model.state_dict()
    if strange := here.keys() ^ weights.keys():
        raise RuntimeError(f"{min(strange)} is in one of them")
    for name, own in here.items():
        found = weights[name]
        if found.shape != own.shape:
            raise RuntimeError(f"{name} has the shape {tuple(found.shape)}, and not {tuple(own.shape)}")
        own.copy_(found)


def frozen_of(model: LanguageModule) -> set[str]:
    """The names of weights that stay as they are: parameters without gradients, and packed matrices."""
    found = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for name, module in model.named_modules():
        if getattr(module, "constant", False):
            found |= {f"{name}.{buffer}" for buffer, _ in module.named_buffers(recurse=False)}
    return found
