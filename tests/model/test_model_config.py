import copy
from typing import Any

import pytest

from shoestring import method as registry
from shoestring.config import build, to_toml, tree
from shoestring.errors import UsageError
from shoestring.method import method
from shoestring.model import ModelConfig
from shoestring.model.swiglu import SwiGLU
from shoestring.model.transformer import Transformer


def test_what_is_left_out_is_worked_out_and_stored() -> None:
    config = ModelConfig(width=256, heads=4)
    assert (config.key_value_heads, config.head_width, config.hidden) == (4, 64, 704)
    assert build(ModelConfig, {"width": 256, "channel_mixer": "squared_relu"}).hidden == 1024
    assert build(ModelConfig, {"width": 256, "heads": 3, "head_width": 40, "hidden": 100}).hidden == 100


def test_a_saved_configuration_is_complete(config: ModelConfig) -> None:
    plain = tree(config)
    given = {name for name in ModelConfig.__dataclass_fields__ if getattr(config, name) is not None}
    assert set(plain) == given
    assert plain["token_mixer"]["rope_theta"] > 0
    assert 0 not in (plain["head_width"], plain["hidden"], plain["key_value_heads"])
    assert build(ModelConfig, plain) == config
    assert to_toml(build(ModelConfig, plain)) == to_toml(config)
    assert copy.deepcopy(config) == config


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"heads": 5}, "heads must divide width"),
        ({"heads": 4, "key_value_heads": 3}, "key_value_heads must divide heads"),
        ({"heads": 4, "key_value_heads": 8}, "key_value_heads must divide heads"),
        ({"head_width": 7}, "head_width must be even"),
        ({"layers": 0}, "layers"),
        ({"hidden": -1}, "hidden"),
    ],
)
def test_sizes_that_cannot_go_together_get_one_clear_line(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModelConfig(**{"width": 32, "heads": 4, **wrong})
    with pytest.raises(UsageError, match=words) as raised:
        build(ModelConfig, {"width": 32, "heads": 4, **wrong})
    assert "\n" not in str(raised.value)


def test_a_model_without_a_vocabulary_is_not_built() -> None:
    with pytest.raises(UsageError, match="vocabulary"):
        Transformer(ModelConfig())


def test_an_unknown_mixer_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'swiglu'"):
        build(ModelConfig, {"channel_mixer": "swigl"})


def test_a_new_channel_mixer_is_one_class_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_cards", dict(registry._cards))  # forget it afterwards

    @method("model", kind="channel mixer", name="half_swiglu", claim="none", cost="half")
    class Half(SwiGLU):
        expansion = 1.5

        def __init__(self, width: int, hidden: int, *, factor: float = 2.0) -> None:
            super().__init__(width, hidden)
            self.factor = factor

    choice = {"name": "half_swiglu", "factor": 3.0}
    config = build(ModelConfig, {"width": 64, "vocabulary": 10, "channel_mixer": choice})
    assert config.hidden == 96
    mixer: Any = Transformer(config).blocks[0].channel_mixer
    assert mixer.factor == 3.0
    assert tree(config)["channel_mixer"] == choice
