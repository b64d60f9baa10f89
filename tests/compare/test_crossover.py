"""The bench of masked diffusion against next tokens: when it calls a crossing one, and that both arms are judged on the same."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from shoestring.data.store import TokenStore
from shoestring.data.windows import Windows
from shoestring.model import ModelConfig, Transformer

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))
spec = importlib.util.spec_from_file_location("bench_crossover", BENCH / "crossover.py")
assert spec is not None
assert spec.loader is not None
crossover = importlib.util.module_from_spec(spec)
spec.loader.exec_module(crossover)
sys.path.remove(str(BENCH))


@pytest.mark.parametrize(
    ("ours", "theirs", "place"),
    [
        ([5, 4, 3], [4, 3.5, 3.2], 2),
        ([5, 3, 4], [4, 3.5, 3.2], None),  # it goes below, and ends above
        ([5, 4, 3], [4, 4, 4], 2),  # as high is not below
        ([3, 2, 1], [4, 3, 2], 0),
    ],
)
def test_a_crossing_holds_to_the_end(ours: list[float], theirs: list[float], place: int | None) -> None:
    assert crossover.crossing(ours, theirs) == place


def test_crossings_pair_runs_of_the_same_tokens_and_seed() -> None:
    def line(arm: str, unique: int, losses: list[float]) -> dict[str, Any]:
        points = [{"loss": loss, "flops": 10.0 * n, "epochs": n} for n, loss in enumerate(losses)]
        return {"arm": arm, "unique": unique, "seed": 0, "points": points}

    found = crossover.crossings([
        line("next_token", 8, [4, 2, 3, 5]),
        line("masked_diffusion", 8, [6, 5, 4, 3]),
        line("next_token", 16, [4, 3, 2, 1]),
    ])  # fmt: skip
    assert len(found) == 1
    assert found[0]["as trained"] == {"place": 3, "flops": 30.0, "epochs": 3}
    assert found[0]["stopped early"] is None  # the other's best checkpoint stays better


@pytest.mark.parametrize("arm", ["next_token", "masked_diffusion"])
def test_a_model_that_knows_nothing_is_judged_alike_in_both_arms(arm: str) -> None:
    """Of logits that are all equal both figures are ln V, so that no token is judged in one arm and not in the other."""
    model = Transformer(ModelConfig(layers=1, width=8, heads=1, vocabulary=9, context=6, **crossover.CHANGES[arm]))
    torch.nn.init.zeros_(model.embedding.weight)
    windows = Windows(TokenStore.of([list(range(8)) * 4], 8), 6)
    found = crossover.judged(arm, model, windows, 3, 2)
    assert found == pytest.approx(torch.tensor(9.0).log().item(), abs=1e-5)


def test_unique_tokens_are_the_first_of_the_corpus() -> None:
    store = TokenStore.of([[1, 2, 3], [4, 5, 6]], 0)
    few = crossover.few(store, 5)
    assert len(few) == 5
    ids = Windows(few, 4, shuffle=False).batch(0, 1)
    assert ids.inputs.values.tolist() == [[1, 2, 3, 0]]
    with pytest.raises(SystemExit, match="fewer than 9"):
        crossover.few(store, 9)
