"""Optimisers under an outer loop: what they say of themselves, and what stays when their state is emptied."""

import math
from functools import partial
from typing import Any

import pytest
import schedulefree
import torch
from lockstep_run import Run
from small_codecs import Tower, give_gradients
from torch import nn

from shoestring.errors import UsageError
from shoestring.optim.adamw import AdamW
from shoestring.optim.composite import Composite
from shoestring.optim.muon import Muon
from shoestring.optim.muon_hypersphere import MuonHypersphere
from shoestring.optim.partition import partition
from shoestring.optim.schedule_free import ScheduleFreeAdamW
from shoestring.sync.diloco import DiLoCo
from shoestring.sync.outer import OuterSGD


def matrices(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.ndim >= 2]


def vectors(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.ndim < 2]


def both(matrix: Any, vector: Any) -> Any:
    return lambda model: Composite(matrix(matrices(model)), vector(vectors(model)))


@pytest.mark.parametrize(
    ("make", "momentum"),
    [
        (lambda model: None, 0.9),
        (lambda model: AdamW(model.parameters()), 0.9),
        (lambda model: torch.optim.AdamW(model.parameters()), 0.9),
        (both(AdamW, torch.optim.SGD), 0.9),
        (lambda model: Muon(matrices(model)), 0.6),
        (lambda model: MuonHypersphere(matrices(model)), 0.6),
        (lambda model: torch.optim.Muon(matrices(model)), 0.6),
        (both(Muon, AdamW), 0.6),
        (both(torch.optim.Muon, torch.optim.AdamW), 0.6),
    ],
)
def test_the_outer_optimiser_suits_the_inner_one(make: Any, momentum: float) -> None:
    model = Tower()
    assert DiLoCo(model, make(model)).outer == OuterSGD(0.7, momentum)
    assert DiLoCo(model, make(model), outer=OuterSGD(0.5, 0.1)).outer == OuterSGD(0.5, 0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda model: ScheduleFreeAdamW(model.parameters()),
        both(Muon, ScheduleFreeAdamW),
        lambda model: schedulefree.AdamWScheduleFree(model.parameters()),
        both(Muon, schedulefree.AdamWScheduleFree),
    ],
)
def test_one_whose_state_holds_weights_is_refused(make: Any) -> None:
    model = Tower()
    with pytest.raises(UsageError, match=r"keeps weights of its own in its state .* would leave behind"):
        DiLoCo(model, make(model))


def radii(optimizer: torch.optim.Optimizer) -> list[float]:
    return [state["radius"].item() for state in optimizer.state.values() if "radius" in state]


def test_what_is_forgotten_and_what_is_not() -> None:
    model = Tower()
    optimizer = both(MuonHypersphere, AdamW)(model)
    give_gradients(model, 0, 1)
    optimizer.step()
    for parameter in model.parameters():
        optimizer.forget(parameter)
    kept = {key for state in optimizer.state.values() for key in state}
    assert kept == {"radius"}
    assert len(radii(optimizer)) == len(matrices(model))


def test_all_workers_keep_the_spheres_of_the_first_weights() -> None:
    """Though one of them was dropped, and so has lost its state, and though one has not taken a step before a merge."""
    run = Run(3, every=2)
    first = [parameter.norm().item() for parameter in matrices(Tower())]
    run.inner = [both(partial(MuonHypersphere, lr=0.3), partial(AdamW, lr=0.1))(model) for model in run.models]
    for rank, (worker, model) in enumerate(zip(run.workers, run.models, strict=True)):
        run.workers[rank] = DiLoCo(model, run.inner[rank], transport=worker.transport, every=2)
    run.lockstep.replicas[:] = run.workers
    assert [radii(inner) for inner in run.inner] == [pytest.approx(first)] * 3
    run.step(1)
    run.models[1].blocks[2].weight.data[0, 0] = math.nan  # type: ignore[operator]
    run.step(1)
    assert run.rounds[-1][0].dropped == [1]
    run.step(5)
    assert [own[0].participants for own in run.rounds if own][-1] == [0, 1, 2]
    assert [radii(inner) for inner in run.inner] == [pytest.approx(first)] * 3
    for model in run.models:
        assert [parameter.norm().item() for parameter in matrices(model)] == pytest.approx(first, rel=0.02)


def test_a_worker_that_joins_before_its_first_step_has_the_spheres_of_the_first_weights() -> None:
    model = Tower()
    first = [parameter.norm().item() for parameter in matrices(model)]
    optimizer = partition(model, MuonHypersphere, AdamW).build()
    outer = DiLoCo(model, optimizer, every=2)
    tensors, values = outer.shared_state()
    outer.join({name: 1.3 * tensor for name, tensor in tensors.items()}, values)
    give_gradients(model, 0, 1)
    optimizer.step()
    found = [parameter.norm().item() for parameter in matrices(model)[1:]]
    assert found == pytest.approx(first[1:], rel=1e-3)
