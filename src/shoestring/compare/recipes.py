"""The recipes of a comparison: complete configurations, of which a candidate takes what it leaves open from the base."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from shoestring.config import Tree, build, merge, overrides, tree
from shoestring.errors import UsageError
from shoestring.model.transformer import Transformer
from shoestring.optim.partition import partition
from shoestring.train.config import RunConfig

RATES = ("optim.lr", "fallback.lr")
"""The learning rates of a run."""


def candidate(base: RunConfig, asked: Tree) -> RunConfig:
    """The configuration a candidate's recipe asks for, with the base's budget and what else it leaves open.

    Sizes of the model that follow from others (`ModelConfig.following`) follow from the candidate's.

    Raises: UsageError, also for a budget of its own that differs: the arms are judged at one budget.
    """
    config = _laid_over(base, asked)
    if config.budget != base.budget:
        raise UsageError(f"an arm asks for a budget of {config.budget}, the base for {base.budget}: give both --budget")
    return config


def for_judging(config: RunConfig) -> RunConfig:
    """The configuration without what a comparison does not need: the sample, and checkpoints on the way."""
    return replace(config, train=replace(config.train, sample_tokens=0, checkpoint_every=1e9, keep=1))


def check_workers(arms: Mapping[str, RunConfig]) -> None:
    """Raises: UsageError, naming the arm, where a run would not be what its configuration says: it is one process, in which
    all workers take their turns."""
    for name, config in arms.items():
        if config.transport in ("torchft", "pipeline") or (config.workers > 1 and config.transport != "local"):
            raise UsageError(
                f"{name} asks for transport = {config.transport}, and a run of a comparison is one process: "
                "give --transport local, which has all workers there, in lock-step"
            )
        if config.workers > 1 and config.budget.seconds is not None:
            raise UsageError(
                f"{name} has {config.workers} workers that take turns in one process, each with a part of the seconds only: "
                "compare at a budget in tokens or FLOPs"
            )


def with_settings(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The configuration with the values of these keys ('optim.lr' ...). Raises: UsageError."""
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return _laid_over(config, overrides(words))


def _laid_over(config: RunConfig, asked: Tree) -> RunConfig:
    below = tree(config)
    below["model"] = {name: value for name, value in below["model"].items() if name not in config.model.following()}
    return build(RunConfig, merge(below, asked))


def uses_fallback(config: RunConfig) -> bool:
    """Whether some parameters go to the fallback optimiser."""
    shape = replace(config.model, vocabulary=config.model.vocabulary or 64)
    model = Transformer(replace(shape, layers=1) if shape.uniform else shape)
    return all(share.members for share in partition(model, config.optim, config.fallback).shares)


def parse_tuning(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """'lr=3e-4,1e-3' or 'lr=*0.5,*1,*2' (times the arm's own value) -> the values to try, by key. Raises: UsageError."""
    found: dict[str, tuple[str, ...]] = {}
    for word in words:
        key, equals, values = word.partition("=")
        if not equals or not key or not all(values.split(",")):
            raise UsageError(f"--tune {word}: write it like lr=3e-4,1e-3,3e-3 or lr=*0.5,*1,*2")
        if key in found:
            raise UsageError(f"--tune names {key} twice")
        found[key] = tuple(value.strip() for value in values.split(","))
    return found


def trials(config: RunConfig, tuning: Mapping[str, Sequence[str]]) -> tuple[dict[str, Any], ...]:
    """What an arm tries, one mapping of keys to values a trial: all combinations of the values of each key.

    'lr' is optim.lr; times a factor, it is every learning rate of the arm, the fallback's too. Raises: UsageError.
    """
    if not tuning:
        return ()
    each = [[_settings(config, key, value) for value in values] for key, values in tuning.items()]
    made = tuple({k: v for part in combination for k, v in part.items()} for combination in itertools.product(*each))
    for settings in made:
        words = ", ".join(f"{key} = {value}" for key, value in settings.items())
        check_workers({f"a trial with {words}": with_settings(config, settings)})
    return made


def _settings(config: RunConfig, key: str, value: str) -> dict[str, Any]:
    if not value.startswith("*"):
        return {"optim.lr" if key == "lr" else key: _number(value)}
    keys = (RATES if uses_fallback(config) else RATES[:1]) if key == "lr" else (key,)
    factor = _number(value[1:])
    if not isinstance(factor, int | float):
        raise UsageError(f"--tune {key}={value}: after the '*' comes a number")
    return {each: float(f"{_present(config, each) * factor:.6g}") for each in keys}


def _number(value: str) -> Any:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _present(config: RunConfig, key: str) -> float:
    branch: Any = tree(config)
    for part in key.split("."):
        if not isinstance(branch, Mapping) or part not in branch:
            raise UsageError(f"--tune: an arm has no {key}")
        branch = branch[part]
    if not isinstance(branch, int | float):
        raise UsageError(f"--tune: {key} is {branch!r}, which no factor changes")
    return branch
