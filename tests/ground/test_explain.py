"""Every key and option is explained where the user meets it, in the words of the docstrings."""

import re
import tomllib
from typing import Any

import pytest

from shoestring.config import Choice, build
from shoestring.explain import commented_toml, keys, options, texts
from shoestring.method import Positive, method, methods
from shoestring.train.config import RunConfig

SECTIONS = {"model", "data", "train", "execution"}
"""Their keys are explained, and they need no words themselves."""


@pytest.mark.parametrize(
    ("documentation", "found"),
    [
        ("What it does.\n\nlr: the rate. decay: of what\nis kept.", {"lr": "the rate", "decay": "of what is kept"}),
        ("lr, decay: in steps. Raises: ValueError.", {"lr": "in steps", "decay": "in steps"}),
        ("width (tokens): so many.\nlr:\n    the rate", {"width": "so many", "lr": "the rate"}),
        ("Of this lr: nothing is said here.", {}),
        ("lr: one.\n\nAnother paragraph. lr: two.", {"lr": "one"}),
        ("lr: a rate. " + "It is long. " * 40, {"lr": "a rate. " + "It is long. " * 15 + "It is long"}),
    ],
)
def test_docstrings_are_read(documentation: str, found: dict[str, str]) -> None:
    assert texts(documentation, ["lr", "decay", "width"]) == found


@pytest.mark.parametrize("card", methods(), ids=lambda card: f"{card.engine}-{card.name}")
def test_every_option_of_a_method_is_explained(card: Any) -> None:
    pointers = re.compile(r"(as in|see) \S+( \S+)?$")
    assert [name for name, text in options(card).items() if not text or pointers.match(text)] == []


def test_the_words_of_a_parent_elsewhere_are_not_taken() -> None:
    (card,) = (card for card in methods("optim") if card.name == "adamw")
    assert options(card)["lr"] == "learning rate, where its schedule is at 1"


def test_an_option_without_words_has_none() -> None:
    @method("schedule", name="for-this-test-too", claim="a", cost="b")
    def target(*, gain: Positive = 1.0, loss: Positive = 1.0) -> None:
        """What it does.

        gain: the factor.
        """

    assert options(Choice.of("schedule", "for-this-test-too").card) == {"gain": "the factor", "loss": ""}


CHOICES: list[dict[str, Any]] = [
    {},
    {
        "sync": {"name": "muloco", "codec": {"name": "linear", "bits": 4}},
        "edits": [{"name": "drop_layers", "count": 1}, {"name": "ternary"}],
        "optim": "muon",
    },
]


@pytest.mark.parametrize("choices", CHOICES)
def test_a_recipe_explains_every_key_and_reads_back_the_same(choices: dict[str, Any]) -> None:
    config = build(RunConfig, {"budget": "1s", "model": {"vocabulary": 300}, **choices})
    assert {key for key, text in keys(config).items() if not text} <= SECTIONS
    written = commented_toml(config)
    assert build(RunConfig, tomllib.loads(written)) == config
    before = ""
    for line in written.splitlines():
        if " = " in line and not line.startswith(("#", " ")):
            assert before.startswith("#"), line
        before = line
