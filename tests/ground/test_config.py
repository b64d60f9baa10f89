from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.config import Choice, Pick, build, merge, overrides, read_toml, to_toml, tree
from shoestring.errors import UsageError
from shoestring.method import Count, Fraction, Positive
from shoestring.train.config import RunConfig


@dataclass(frozen=True)
class Inner:
    share: Fraction = 0.5
    count: Count = 3
    word: str | None = None


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    schedule: Annotated[Choice, Pick("schedule")] = field(default_factory=lambda: Choice.of("schedule", "wsd"))
    rate: Positive = 0.1


@given(share=st.floats(0, 1), count=st.integers(1, 10**9), decay=st.floats(0.01, 1), word=st.none() | st.text())
def test_toml_round_trip_is_exact(share: float, count: int, decay: float, word: str | None) -> None:
    import tomllib

    config = Outer(Inner(share, count, word), Choice.of("schedule", "wsd", decay=decay))
    assert build(Outer, tomllib.loads(to_toml(config))) == config


@pytest.mark.parametrize(
    ("given_tree", "said"),
    [
        ({"inner": {"shar": 1}}, "unknown key 'inner.shar': did you mean 'share'?"),
        ({"iner": {}}, "unknown key 'iner': did you mean 'inner'?"),
        ({"inner": {"share": 2}}, "inner.share = 2: input should be less than or equal to 1"),
        ({"inner": {"count": 0}}, "inner.count = 0: input should be greater than or equal to 1"),
        ({"inner": {"count": "many"}}, "inner.count = 'many'"),
        ({"rate": float("nan")}, "rate"),
        ({"schedule": "wds"}, "no schedule method is named 'wds': did you mean 'wsd'?"),
        ({"schedule": {"name": "wsd", "decey": 0.1}}, "did you mean 'decay'?"),
        ({"schedule": {"name": "wsd", "decay": 3}}, "wsd.decay = 3"),
        ({"schedule": {"decay": 0.2}}, "a method's name"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(given_tree: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        build(Outer, given_tree)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_overrides_read_toml_values_and_words() -> None:
    words = ["--budget=2m", "--a.b", "[1, 2]", "--a.c-d", "true", "--optim.lr", "1e-3", "--optim", "muon", "--x", "-3"]
    assert overrides(words) == {
        "budget": "2m",
        "a": {"b": [1, 2], "c_d": True},
        "optim": {"lr": 1e-3, "name": "muon"},
        "x": -3,
    }


@pytest.mark.parametrize("words", [["plain"], ["--key"], ["--key", "--other", "1"]])
def test_overrides_refuse_what_is_no_flag_with_a_value(words: list[str]) -> None:
    with pytest.raises(UsageError):
        overrides(words)


def test_another_method_drops_the_lower_ones_options() -> None:
    lower = {"optim": {"name": "muon", "momentum": 0.9, "lr": 1.0}, "seed": 1}
    assert merge(lower, {"optim": {"lr": 2.0}})["optim"] == {"name": "muon", "momentum": 0.9, "lr": 2.0}
    assert merge(lower, {"optim": {"name": "adamw", "lr": 2.0}})["optim"] == {"name": "adamw", "lr": 2.0}
    assert merge(lower, {"optim": "adamw"}) == {"optim": {"name": "adamw"}, "seed": 1}


def test_options_are_those_of_the_method_a_lower_file_names() -> None:
    assert merge({"optim": "soap"}, {"optim": {"lr": 2.0}}) == {"optim": {"name": "soap", "lr": 2.0}}


def test_a_choice_is_complete_and_builds() -> None:
    choice = Choice.of("schedule", "wsd", decay=0.5)
    assert choice.options.keys() >= {"decay", "shape", "floor"}
    assert choice.build()(0.2) == 1.0
    assert tree(Outer(schedule=choice))["schedule"]["decay"] == 0.5


def test_broken_toml_names_file_and_place(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[optim\nlr = 1")
    with pytest.raises(UsageError, match=r"broken\.toml is not TOML.*line 1"):
        read_toml(path)
    with pytest.raises(UsageError, match="no such file"):
        read_toml(tmp_path / "absent.toml")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not TOML"):
        read_toml(path)


@pytest.mark.parametrize("name", ["kind", "engine", "cls", "self"])
def test_an_option_of_any_name_is_refused_as_unknown(name: str) -> None:
    asked: tuple[dict[str, Any], ...] = ({"optim": {"name": "adamw", name: 1}}, {"edits": [{"name": "lora", name: 1}]})
    for table in asked:
        with pytest.raises(UsageError, match=f"unknown key .*{name}"):
            build(RunConfig, {"budget": "1s", "model": {}, **table})
