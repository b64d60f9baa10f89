"""The workers of one process: what is said of a round, and which checkpoint fits."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy_run import EVERY, Toy

from shoestring.budget.ledger import Ledger
from shoestring.errors import ShoestringError
from shoestring.sync.transport.local import LocalGroup
from shoestring.train.team import Team


def team(count: int) -> Team:
    toys = [Toy() for _ in range(count)]
    steppers: Any = [SimpleNamespace(model=toy, optimizer=toy.inner, apply=lambda factor: None) for toy in toys]
    outers = [toy.outer(transport=link) for toy, link in zip(toys, LocalGroup(count).transports, strict=True)]
    return Team(steppers, outers, Ledger())


def test_a_pseudo_gradient_that_is_not_finite_is_named(said: list[str]) -> None:
    three = team(3)
    with torch.no_grad():
        three.steppers[1].model.weight[0, 0] = torch.nan  # type: ignore[operator]
    for _ in range(2 * EVERY):
        three.apply(1.0)
    assert said == [f"step {EVERY}: the pseudo-gradient of worker 1 is not finite and was left out"]
    assert three.exchanges.dropped == 1
    assert three.exchanges.rounds == 2


def test_a_checkpoint_of_another_number_of_workers_is_refused_in_one_line() -> None:
    weights: dict[str, Any] = {}
    tensors, values = team(2).state()
    with pytest.raises(ShoestringError, match="is of 2 workers in one process, and 1 are to go on") as refused:
        team(1).restore(weights, tensors, values)
    assert "\n" not in str(refused.value)
