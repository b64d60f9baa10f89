"""What a candidate takes from the base, and what follows from its own choices."""

from pathlib import Path
from typing import Any

import pytest

from shoestring.compare.recipes import candidate, check_workers, parse_tuning, trials, with_settings
from shoestring.compare.runner import Trainer
from shoestring.config import build, tree
from shoestring.errors import UsageError
from shoestring.train.config import RunConfig

BASE = {"budget": "1Mtok", "model": {"layers": 3, "width": 96, "heads": 3, "vocabulary": 512}, "optim": {"lr": 0.03}}


def shape(config: RunConfig) -> tuple[int, ...]:
    model = config.model
    return model.layers, model.width, model.heads, model.key_value_heads, model.head_width, model.hidden


def test_sizes_that_follow_from_the_width_follow_from_the_candidates_own() -> None:
    base = build(RunConfig, BASE)
    assert shape(base) == (3, 96, 3, 3, 32, 256)
    wide = candidate(base, {"model": {"layers": 4, "width": 192, "heads": 6}})
    assert shape(wide) == (4, 192, 6, 6, 32, 512)
    assert wide.model.vocabulary == 512
    assert wide.optim == base.optim
    assert shape(with_settings(base, {"model.width": 192, "model.heads": 6})) == (3, 192, 6, 6, 32, 512)
    square = candidate(base, {"model": {"channel_mixer": "squared_relu"}})
    assert square.model.hidden == build(RunConfig, {**BASE, "model": tree(square.model) | {"hidden": 0}}).model.hidden


def test_sizes_that_the_base_chose_are_taken_over() -> None:
    base = build(RunConfig, {**BASE, "model": {**BASE["model"], "key_value_heads": 1, "hidden": 128}})  # type: ignore[dict-item]
    wide = candidate(base, {"model": {"width": 192, "heads": 6}})
    assert shape(wide) == (3, 192, 6, 1, 32, 128)
    assert candidate(base, {}) == base


TEAM: dict[str, Any] = {"workers": 4, "sync": "muloco", "transport": "local"}


def test_workers_of_an_arm_take_turns_in_one_process() -> None:
    check_workers({"base": build(RunConfig, BASE), "team": build(RunConfig, {**BASE, **TEAM})})


PIPELINE: dict[str, Any] = {
    "model": {"layers": 3, "width": 96, "heads": 3, "vocabulary": 512, "tied": False},
    "transport": "pipeline",
    "workers": 1,
    "sync": {"name": "none"},
    "pipeline": {"stages": 1},
    "optim": {"name": "adamw"},
    "execution": {"device": "cpu", "precision": "float32", "compile": "none", "attention": "flash", "loss": "plain"},
}


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"transport": "distributed"}, "team asks for transport = distributed, .* give --transport local"),
        ({"transport": "torchft"}, "team asks for transport = torchft, .* give --transport local"),
        ({"transport": "torchft", "workers": 1}, "team asks for transport = torchft"),
        (PIPELINE, "team asks for transport = pipeline"),
        ({"budget": "20s"}, "team has 4 workers that take turns in one process, .* at a budget in tokens or FLOPs"),
    ],
)
def test_what_an_arm_would_not_be_trained_as_is_refused(own: dict[str, Any], said: str, tmp_path: Path) -> None:
    arms = {"base": build(RunConfig, BASE), "team": build(RunConfig, {**BASE, **TEAM, **own})}
    with pytest.raises(UsageError, match=said):
        Trainer(arms, tmp_path)


def test_nor_is_a_trial() -> None:
    base = build(RunConfig, {**BASE, "sync": "muloco"})
    with pytest.raises(UsageError, match="a trial with workers = 4 asks for transport = distributed"):
        trials(base, parse_tuning(["workers=1,4"]))
