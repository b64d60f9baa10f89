"""Recipes and flags are damaged: a run's configuration is complete, planned and reads back the same, or is refused in one line."""

import random
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

from shoestring.budget.machine import Machine
from shoestring.config import build, to_toml, tree
from shoestring.data import DataConfig
from shoestring.data.prepare import prepare as prepare_data
from shoestring.errors import UsageError
from shoestring.explain import commented_toml
from shoestring.launch.request import TrainingRequest, planned
from shoestring.method import methods
from shoestring.train.config import RunConfig
from tests.fuzz.explore import Case
from tests.fuzz.mutations import mutate_toml, mutate_value, strange

LAPTOP = Machine("cpu", "a laptop", 2, 16 * 2**30, (), {"float32": 1.5e11, "bfloat16": 4e11}, 2e10)

CHOICES: tuple[dict[str, Any], ...] = (
    {},
    {"optim": "muon", "schedule": {"name": "wsd_s", "branches": [0.5, 1.0]}, "batch_size": "ramp"},
    {"sync": {"name": "muloco", "codec": {"name": "linear", "bits": 4}}, "workers": 2, "transport": "local"},
    {"edits": [{"name": "ternary", "activations": "int8", "keep": ["blocks.0.*"], "active": "late"}]},
    {"edits": [{"name": "drop_layers", "count": 1}, {"name": "lora", "rank": 2, "targets": ["*.qkv"]}]},
    {
        "sync": "diloco",
        "workers": 3,
        "transport": "torchft",
        "train": {"batch": 12},
        "model": {"width": 96, "vocabulary": 257},
    },
)
"""Recipes that are damaged, beside what they leave to the defaults."""

PLAIN = ("1", "2", "4", "64", "0.5", "0.1", "true", "false", "auto", "none", "1.0")
"""Values that many keys take."""


def prepare(folder: Path) -> Case:
    corpus = folder / "corpus.txt"
    corpus.write_text("".join(f"line {number} of the corpus\n" for number in range(2000)))
    data = DataConfig(corpus=str(corpus), tokenizer="bytes", heldout=0.2)
    dataset = prepare_data(data, folder / "cache")
    base = {
        "budget": "1Mtok",
        "model": {"layers": 2, "width": 64, "context": 64, "vocabulary": 257},
        "data": tree(data),
    }
    recipes = [base | choice for choice in CHOICES]
    complete = [to_toml(build(RunConfig, recipe)) for recipe in recipes]
    keys = sorted({f"{section}.{key}" for text in complete for section, key in _keys(tomllib.loads(text))})
    names = sorted({card.name for card in methods()})
    path = folder / "recipe.toml"
    path.write_text(complete[0])
    planned(
        TrainingRequest.read(path, []), LAPTOP, dataset, 0.0
    )  # the first plan imports what the cases are not to be timed with

    def flags(draw: random.Random) -> list[str]:
        words = []
        for _ in range(draw.randint(1, 3)):
            key = draw.choice(keys) if draw.random() < 0.9 else str(strange(draw))
            many = f"{draw.choice((-1, 1))}{10 ** draw.randrange(40)}"
            odd = (str(strange(draw)), draw.choice(names), many)
            value = draw.choice(odd if draw.random() < 0.5 else PLAIN)
            words += [f"--{key}={value}"] if draw.random() < 0.5 else [f"--{key}", value]
        return words

    def case(draw: random.Random) -> None:
        words: list[str] = []
        if draw.random() < 0.5:
            path.write_bytes(mutate_toml(draw.choice(complete), draw))
        elif draw.random() < 0.5:
            path.write_text(draw.choice(complete))
            words = flags(draw)
        else:  # plain values, as a program of one's own would give them
            config = build(RunConfig, _table(mutate_value(draw.choice(recipes), draw)))
            assert build(RunConfig, tree(config)) == config
            return
        request = TrainingRequest.read(path, words)
        _, config = planned(request, LAPTOP, dataset, 0.0)
        for written in (to_toml(config), commented_toml(config)):
            assert build(RunConfig, tomllib.loads(written)) == config, "a configuration reads back as another"
        assert config.budget == request.budget
        replace(config, seed=1)

    return case


def _keys(recipe: dict[str, Any]) -> list[tuple[str, str]]:
    found = [(section, key) for section, table in recipe.items() if isinstance(table, dict) for key in table]
    for section, tables in recipe.items():
        if isinstance(tables, list):
            found += [(f"{section}.{table['name']}", key) for table in tables for key in table if key != "name"]
    return found


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UsageError("a recipe is a table")  # no caller's business: `build` takes a mapping
    return value
