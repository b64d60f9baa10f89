"""A target of loss: the search takes the smallest size within it, says what is the least where none is, and survives a kill."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shoestring.cli.main import main
from shoestring.config import Choice
from shoestring.errors import ShoestringError, UsageError
from shoestring.method import methods
from shoestring.quantise import loss_trials
from shoestring.quantise.loss_target import RecipeChoice, RecipeSearch, loss_target, recipes
from tests.quantise import making
from tests.train.command import TINY

SEARCHES = [card.name for card in methods("quantise", "recipe search")]


@dataclass
class Told:
    """Trials whose losses are known: rise = spread / size, times 2 by the cheap solver."""

    limit: float
    most: int = 1000
    tried: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sizes = recipes("integer_groups", {}, None, list(making.native().anatomy().matrices()))

    def rise(self, recipe: RecipeChoice) -> float:
        self.tried.append(recipe.said)
        return self.sizes[0][0].size / recipe.size * (2 if recipe.solver.name == "rtn" else 1)

    def over(self) -> bool:
        return len(self.tried) >= self.most


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("limit", [3.0, 1.0, 0.9, 0.65, 0.5, 0.34])
def test_the_smallest_size_within_the_limit_is_taken(name: str, limit: float) -> None:
    trials, slow = Told(limit), Told(limit)
    search: RecipeSearch = Choice.of("quantise", name, kind="recipe search").build()
    found = search.choose(trials)
    fitting = [recipe for size in slow.sizes for recipe in size if slow.rise(recipe) <= limit]
    assert found.size == fitting[0].size
    assert found.said in trials.tried
    assert len(trials.tried) == len(set(trials.tried)) <= 12 < len(slow.tried)


@pytest.mark.parametrize("name", SEARCHES)
def test_what_cannot_be_reached_is_answered(name: str) -> None:
    search: RecipeSearch = Choice.of("quantise", name, kind="recipe search").build()
    trials = Told(1e-3)
    with pytest.raises(
        UsageError, match=r"no recipe that was tried does; the least was .* 8 bits in groups of 32 by gptq"
    ):
        search.choose(trials)
    with pytest.raises(UsageError, match="budget ended before a recipe was found; the least"):
        search.choose(Told(1e-3, most=2))
    with pytest.raises(UsageError, match="give more --budget"):
        search.choose(Told(1e-3, most=0))
    cut = Told(3.0, most=2)
    assert search.choose(cut).said == cut.tried[-1], "what the budget allowed is not taken"


def test_recipes_are_of_sizes_that_rise_and_of_what_is_asked_for() -> None:
    matrices = list(making.native().anatomy().matrices())
    sizes = recipes("integer_groups", {"group": 16}, Choice.of("quantise", "nupes", kind="solver"), matrices)
    assert [[one.bits for one in size] for size in sizes] == [
        [2],
        [3],
        [5],
        [6],
        [8],
    ]  # 4 and a minimum take the bytes of 5
    assert {one.solver.name for size in sizes for one in size} == {"nupes"}
    assert [size[0].size for size in recipes("microscaling", {}, None, matrices)] == sorted(
        size[0].size for size in recipes("microscaling", {}, None, matrices)
    )
    with pytest.raises(UsageError, match="one width"):
        recipes("k_blocks", {}, None, matrices)
    assert (loss_target("loss+0.01"), loss_target(" LOSS + 1e-3 "), loss_target("4bit")) == (0.01, 1e-3, None)
    for wrong in ("loss", "loss+0", "loss-0.1", "loss+x"):
        with pytest.raises(UsageError, match="loss"):
            loss_target(wrong)


def test_the_command_goes_on_after_a_kill(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = tmp_path / "run", tmp_path / "small"
    words = ["--budget=6ktok", f"--data.corpus={corpus}", *TINY, "--data.heldout=0.3", "--train.sample_tokens=0"]
    assert main(["train", *words, "--out", str(run)]) == 0
    command = ["quantise", str(run), "--to", "loss+0.02", "--out", str(out), "--json", "--tokens=128", "--measured=256"]
    measured, calls = loss_trials.measure_kept, list[Path]()

    def counting(folder: Path, *more: object) -> object:
        calls.append(folder)
        if len(calls) == 3:
            raise ShoestringError("stopped here")
        return measured(folder, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(loss_trials, "measure_kept", counting)
    assert main(command) == 1
    capsys.readouterr()
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(calls) == len(found["tried"]) + 1  # the two that were finished are not measured again
    assert found["rise"] <= 0.02
    taken = [one for one in found["tried"] if one["taken"]]
    assert found["bytes"] == min(one["bytes"] for one in taken) == (out / "quantised.safetensors").stat().st_size
    assert not list(tmp_path.glob(".small*"))
    capsys.readouterr()
    assert main([*command[:5], str(tmp_path / "no"), "--unmeasured"]) == 2
    assert "a target of loss is measured" in capsys.readouterr().err
