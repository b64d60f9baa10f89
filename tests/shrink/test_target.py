"""What a model is to come down to, and how much may stay for it."""

from dataclasses import replace

import pytest
import torch

from shoestring.contract.cost import Shape
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.shrink import target
from shoestring.shrink.shares import cut_to, layers_for, outline_of, share_for
from shoestring.shrink.target import (
    LEAST_ROUNDS,
    WEIGHT,
    Size,
    Target,
    ratio_in_turns,
    seconds_per_token,
    size_of,
    times_in_turns,
)

CONFIG = ModelConfig(layers=2, width=64, heads=4, key_value_heads=2, vocabulary=50, context=48, hidden=128)


def made() -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG).requires_grad_(False).eval()


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("0.7x", Target("parameters", 0.7, relative=True)),
        ("0.7xms/token", Target("seconds", 0.7, relative=True)),
        ("0.7x flops/token", Target("flops", 0.7, relative=True)),
        ("90MiB", Target("bytes", 90 * 2**20)),
        ("1.5GB", Target("bytes", 1.5e9)),
        ("80Mparameters", Target("parameters", 80e6)),
        ("1e6 parameters", Target("parameters", 1e6)),
        ("200Mflops/token", Target("flops", 200e6)),
        ("4ms/token", Target("seconds", 0.004)),
        ("0.5s/token", Target("seconds", 0.5)),
    ],
)
def test_targets_are_read(text: str, target: Target) -> None:
    found = Target.parse(text)
    assert replace(found, amount=0) == replace(target, amount=0)
    assert found.amount == pytest.approx(target.amount)


@pytest.mark.parametrize(
    "text", ["", "x", "1.2x", "0x", "4", "fast", "-3MB", "0MB", "4ms", "3lbs", "nan", "infMB", "0.7xMB"]
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--to .*: a share|is no target: say 0\.7x"):
        Target.parse(text)


def test_sizes_are_those_of_the_model() -> None:
    model = made()
    found = size_of(model)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.bytes == WEIGHT * found.parameters
    assert found.flops == model.cost(Shape(1, 1, 32)).flops
    with pytest.raises(UsageError, match="was not measured"):
        found.of("seconds")


def test_seconds_are_the_median_of_passes_over_a_token() -> None:
    ticks = iter(range(1000))
    assert seconds_per_token(made(), clock=lambda: float(next(ticks))) == 1.0


def test_models_take_turns_and_a_round_that_was_half_disturbed_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, asked = made(), made(), list[object]()

    def slow(model: object) -> float:
        asked.append(model)
        return 0.010 if len(asked) < 4 else 0.001  # the first round, and half of the second, are disturbed

    monkeypatch.setattr(target, "seconds_per_token", slow)
    monkeypatch.setattr(target, "SPAN", 0.0)
    found = times_in_turns([first, second])
    assert asked == [first, second] * LEAST_ROUNDS
    assert ratio_in_turns(*found) == 1.0  # of the rounds' 1, 10 and 1
    assert len(times_in_turns([first], 7)[0]) == 7


@pytest.mark.parametrize("axes", [["hidden"], ["hidden", "width"], ["hidden", "heads"]])
@pytest.mark.parametrize("text", ["0.8x", "0.6x", "100kB", "80kflops/token"])
def test_the_largest_share_that_reaches_the_target(axes: list[str], text: str) -> None:
    model, target = made(), Target.parse(text)
    whole = size_of(model)
    if text == "80kflops/token" and axes == ["hidden"]:
        with pytest.raises(UsageError, match="hidden alone do not reach"):
            share_for(model, Target("flops", 1000), axes, 8, whole=whole, measure=size_of)
        return
    share, found = share_for(model, target, axes, 8, whole=whole, measure=size_of)
    assert found.of(target.unit) <= target.of(whole)
    assert found == size_of(cut_to(made(), axes, share, 8))
    next_larger = size_of(cut_to(made(), axes, share + 1 / 96, 8))
    assert next_larger.of(target.unit) > target.of(whole) or next_larger == found
    assert sum(p.numel() for p in model.parameters()) == whole.parameters  # the model is as it was


def test_a_target_in_seconds_is_met_by_measuring() -> None:
    """With a machine whose time is a known function of the size, the share is found within a few measurements."""
    model, asked = made(), list[int]()

    def measure(cut: Transformer) -> Size:
        found = size_of(cut)
        asked.append(found.parameters)
        return replace(found, seconds=0.001 + found.parameters * 1e-7)

    whole = replace(size_of(model), seconds=0.001 + size_of(model).parameters * 1e-7)
    wanted = Target("seconds", 0.75 * whole.of("seconds"))
    _, found = share_for(model, wanted, ["hidden", "width"], 8, whole=whole, measure=measure)
    assert 0.85 * wanted.amount < found.of("seconds") <= wanted.amount
    assert len(asked) <= 6
    with pytest.raises(UsageError, match=r"the least is 4\.\d+ ms a token; drop layers too"):
        share_for(model, Target("seconds", 0.001), ["hidden"], 8, whole=whole, measure=measure)


def of_layers(stay: int) -> Size:
    made = outline_of(deep())
    made.anatomy().keep_layers(range(stay))
    return size_of(made)


def deep() -> Transformer:
    torch.manual_seed(0)
    return Transformer(replace(CONFIG, layers=9)).requires_grad_(False).eval()


@pytest.mark.parametrize("text", ["0.8x", "0.5x", "300kB", "0.6x flops/token", "0.55xms/token"])
def test_the_most_layers_that_reach_the_target(text: str) -> None:
    model, target, asked = deep(), Target.parse(text), list[int]()

    def timed(made: Transformer) -> Size:
        asked.append(made.about.layers)
        return replace(size_of(made), seconds=0.001 * (2 + made.about.layers))

    whole = timed(model)
    stay, found = layers_for(model, target, whole=whole, measure=timed)
    assert found.of(target.unit) <= target.of(whole)
    if target.unit == "seconds":
        assert stay == 4
        assert len(asked) <= 5
    else:
        assert found == of_layers(stay)
        assert of_layers(stay + 1).of(target.unit) > target.of(whole)
    assert model.about.layers == 9
    with pytest.raises(UsageError, match=r"layers alone do not reach .*: the least is .*; cut widths too"):
        layers_for(model, replace(target, amount=1e-9), whole=whole, measure=timed)


def test_what_is_small_enough_is_refused() -> None:
    model = made()
    with pytest.raises(UsageError, match="already: a target below that is needed"):
        share_for(model, Target.parse("1GB"), ["hidden"], 8, whole=size_of(model), measure=size_of)
