"""What a bridge says of its family: the configuration both ways, and where each weight lies."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from shoestring.config import Choice
from shoestring.errors import UsageError
from shoestring.method import Card, find, methods
from shoestring.model.config import ModelConfig
from shoestring.model.rotary import SCALINGS


class WeightPlace(NamedTuple):
    """Where a weight of transformers lies in one of ours.

    name: of our parameter.
    start, rows: its rows that are this weight. None: all.
    order: [rows] int64: row i of ours is row order[i] of theirs. None: in the same order.
    """

    name: str
    start: int = 0
    rows: int | None = None
    order: Tensor | None = None


class Family(ABC):
    """One `model_type` of transformers. Registered as a method of kind 'bridge' under that name, and made without arguments."""

    model_type: ClassVar[str]
    """As the configurations of transformers have it."""

    stock_class: ClassVar[str]
    """The name of the class of transformers."""

    unset: ClassVar[Mapping[str, Any]]
    """What the configuration file of the class says beside `settings`: its defaults, which say nothing of our models."""

    aliases: ClassVar[Mapping[str, str]] = {}
    """Names of weights in older files, and those of today."""

    unneeded: ClassVar[str] = r"rotary_emb\.inv_freq$"
    """A regular expression for tensors of files that are no weights."""

    head: ClassVar[str] = "lm_head.weight"
    """The name of the head's matrix, which a tied model need not have."""

    @abstractmethod
    def config(self, theirs: Any) -> ModelConfig:
        """Our configuration of a configuration of transformers. Raises: UsageError, naming the feature that is not there."""

    @abstractmethod
    def settings(self, config: ModelConfig) -> dict[str, Any]:
        """What the configuration of transformers is made of. Raises: UsageError for a model that the stock class cannot hold."""

    def written(self, config: ModelConfig) -> dict[str, Any]:
        """What the configuration file of the class says of a model, but for its tokens, types and versions."""
        return {**self.unset, **self.settings(config)}

    @abstractmethod
    def places(self, config: ModelConfig) -> dict[str, WeightPlace]:
        """Where each weight of transformers lies in ours. Together they are all our weights."""

    def current(self, name: str) -> str | None:
        """The name of today for a tensor of a file; None for one that is no weight."""
        return None if re.search(self.unneeded, name) else self.aliases.get(name, name)


def families() -> list[Family]:
    """Every family, in the order of their names."""
    return [_made(card) for card in methods("model", "bridge")]


def family_of(model_type: str) -> Family:
    """The family of a `model_type`. Raises: UsageError where there is none."""
    known = [card.name for card in methods("model", "bridge")]
    if model_type not in known:
        raise UsageError(
            f"no bridge for transformers models of type '{model_type}': there is one for {', '.join(known)}"
        )
    return _made(find("model", model_type, "bridge"))


def family_holding(config: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """The first family whose stock class holds a model of this configuration, and the settings of that class.

    Raises: UsageError, with what each family lacks.
    """
    reasons: dict[str, list[str]] = {}
    for family in families():
        try:
            return family, family.settings(config)
        except UsageError as error:
            reasons.setdefault(str(error), []).append(family.model_type)
    told = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    raise UsageError(f"no stock transformers class holds this model ({told})")


def _made(card: Card) -> Family:
    made: Family = card.target()
    return made


def parts_are(config: ModelConfig, **wanted: str) -> None:
    """Raises: UsageError unless the parts of a model are those of these names: token_mixer='attention', say."""
    for field, name in wanted.items():
        choice: Choice = getattr(config, field)
        if choice.name != name:
            raise UsageError(f"the {choice.kind} is '{name}', not '{choice.name}'")


def refuse(theirs: Any, features: Mapping[str, object]) -> None:
    """Raises: UsageError for the first of these features that a configuration of transformers has."""
    for feature, present in features.items():
        if present:
            raise UsageError(f"a {theirs.model_type} model with {feature} has no native counterpart")


def window(theirs: Any) -> str:
    """The name of the feature where some layer sees a window of the context only; empty where none does."""
    size, kinds = getattr(theirs, "sliding_window", None), getattr(theirs, "layer_types", None)
    if size is None or size >= theirs.max_position_embeddings or (kinds and "sliding_attention" not in kinds):
        return ""
    return f"a sliding window of {size} tokens"


def rope(theirs: Any) -> dict[str, Any]:
    """The options of our attention that a configuration's rotary positions are. Raises: UsageError for an unknown scaling."""
    given = {key: value for key, value in theirs.rope_parameters.items() if value is not None}
    theta, kind = given.pop("rope_theta"), given["rope_type"]
    share = given.pop("partial_rotary_factor", 1.0)
    refuse(theirs, {f"{kind} rotary scaling": kind not in ("default", *SCALINGS)})
    scaling = None if kind == "default" else given
    return {"rope_theta": theta, "rotary_share": share, "rope_scaling": scaling}


def rope_parameters(config: ModelConfig) -> dict[str, Any]:
    """The rotary positions of a model as a configuration of transformers has them, but for the share that is turned."""
    options = config.token_mixer.options
    return {"rope_type": "default", **(options["rope_scaling"] or {}), "rope_theta": options["rope_theta"]}
