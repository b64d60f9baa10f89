import math
from typing import Any

import pytest
from synthetic_objective import design

from shoestring.errors import UsageError

TRIALS = ({"lr": 1e-3}, {"lr": 3e-3})


@pytest.mark.parametrize(
    ("arms", "changed", "said"),
    [
        (("adamw",), {}, "at least one candidate"),
        (("adamw", "adamw"), {}, "two arms are called 'adamw'"),
        (("adamw", ""), {}, "no name"),
        ((), {"seeds": 0}, "at least one seed"),
        ((), {"unit": "steps"}, "'steps' is not a unit"),
        ((), {"amount": 0.0}, "buys nothing"),
        ((), {"amount": math.inf}, "buys nothing"),
        ((), {"confidence": 95}, "confidence of 95"),
        ((), {"tolerance": -0.1}, "tolerance of -0.1"),
        ((), {"margin": 0.0}, "margin of 0 is not a share"),
        ((), {"margin": 5.0}, "margin of 5 is not a share"),
        ((), {"until_decided": 4}, "too few seeds: give 5"),
        ((), {"seeds": 1, "until_decided": 2}, "too few seeds: give 3"),
        ((), {"tuning": {"sgd": TRIALS}}, "'sgd', which is not an arm"),
        ((), {"tuning": {"muon": TRIALS}}, "same tuning allowance: 'muon' has 2 settings to try, 'adamw' 0"),
        ((), {"tuning": {"adamw": TRIALS, "muon": TRIALS[:1]}}, "same tuning allowance"),
        ((), {"tuning": {"adamw": TRIALS, "muon": TRIALS[:1] * 2}}, "tries {.* twice"),
        ((), {"tuning": {"adamw": TRIALS, "muon": ({"lr": math.nan}, {"lr": 1.0})}}, "'muon' cannot be written down"),
        ((), {"tuning": {"adamw": TRIALS, "muon": TRIALS}, "tuning_seed": 2}, "seed 2 is both tuned on and judged"),
    ],
)
def test_a_design_that_cannot_judge_is_refused_in_one_line(
    arms: tuple[str, ...], changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        design(*arms, **changed)
    assert "\n" not in str(caught.value)


def test_added_seeds_go_on_from_the_last_past_any_that_is_taken() -> None:
    tuning = {"adamw": TRIALS, "muon": TRIALS}
    assert design(seeds=3, until_decided=6).all_seeds == (0, 1, 2, 3, 4, 5)
    assert design(seeds=3, until_decided=6, tuning=tuning, tuning_seed=4).all_seeds == (0, 1, 2, 3, 5, 6)
    assert design(seeds=3).all_seeds == (0, 1, 2)
