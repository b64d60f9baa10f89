from typing import Any

import pytest
import torch
from lockstep_run import HARD, MATRICES, Run, kept
from safetensors.torch import save
from small_codecs import Grid, Tower
from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.sync.diloco import DiLoCo
from shoestring.sync.feedback import ErrorFeedback


@pytest.mark.parametrize("held", ["accumulator", "weights"])
@pytest.mark.parametrize("average", ["gather", "scatter"])
@pytest.mark.parametrize("at", [1, 6, 9, 11])
def test_resume_in_mid_flight_is_bit_exact(average: Any, at: int, held: Any) -> None:
    options: dict[str, Any] = {**HARD, "average": average, "feedback": ErrorFeedback(0.9, held)}
    straight = Run(3, **options).step(at)
    assert len(straight.workers[0].flights) == {1: 0, 6: 2, 9: 2, 11: 2}[at]
    again = Run(3, **options)
    for new, old, model, was in zip(again.workers, straight.workers, again.models, straight.models, strict=True):
        model.load_state_dict(was.state_dict())
        new.load_state_dict(*kept(old))
    assert again.state() == straight.state()
    straight.step(14)
    again.step(14)
    assert again.state() == straight.state()
    straight.lockstep.synchronise()
    again.lockstep.synchronise()
    assert again.state() == straight.state()


def test_who_goes_on_from_the_last_round_has_what_its_weights_held() -> None:
    options: dict[str, Any] = {
        "every": 6,
        "codec": Grid(),
        "feedback": ErrorFeedback(0.9, held="weights"),
        "average": "scatter",
    }
    straight, again = Run(3, **options).step(6), Run(3, **options)
    for new, old in zip(again.workers, straight.workers, strict=True):
        new.join(*old.shared_state(residuals=True))
    assert again.state() == straight.state()
    for model in again.models:
        assert any(not torch.equal(p, again.weights[name]) for name, p in model.named_parameters())
    assert again.step(9).state() == straight.step(9).state()


def test_what_the_weights_of_a_worker_held_goes_with_them() -> None:
    """Left out of a round, as its weights were not finite, it begins at the global ones."""
    run = Run(2, every=3, codec=Grid(), feedback=ErrorFeedback(1.0, held="weights"), average="scatter").step(5)
    run.inner_step()
    lost = next(p for p in run.models[1].parameters() if p.ndim > 1)
    with torch.no_grad():
        lost[0, 0] = float("nan")
    run.lockstep.step()
    residuals = run.workers[1].residuals
    assert residuals is not None
    assert not residuals.tensors
    assert all(torch.equal(p, run.weights[key]) for key, p in run.models[1].named_parameters())


def test_a_state_says_which_fragments_have_not_moved_since() -> None:
    options: dict[str, Any] = {**HARD, "overlap": 0, "average": "gather"}
    straight, again = Run(2, **options).step(8), Run(2, **options)
    for new, old, model, was in zip(again.workers, straight.workers, again.models, straight.models, strict=True):
        model.load_state_dict(was.state_dict())
        new.load_state_dict(*kept(old))
    joined = Run(2, **options)
    for worker in joined.workers:
        worker.join(*straight.workers[0].shared_state())
    for run in (straight, again, joined):
        assert [sorted(r.fragment for r in own) for own in run.lockstep.synchronise()] == [[1, 2], [1, 2]]


def alike(worker: DiLoCo) -> dict[str, Tensor]:
    return {name: each for name, each in kept(worker)[0].items() if name.startswith(("global.", "momentum."))}


def test_another_number_of_workers_is_refused_or_resharded() -> None:
    options: dict[str, Any] = {**HARD, "average": "scatter"}
    run = Run(3, **options).step(9)
    state = [kept(worker) for worker in run.workers]
    assert any(name.endswith("@part") for name in state[0][0])
    fewer = Run(2, **options)
    before = fewer.state()
    with pytest.raises(
        ShoestringError, match=r"is of worker 1 of 3, and this is worker 1 of 2: a run goes on as it was"
    ):
        fewer.workers[1].load_state_dict(*state[1])
    assert fewer.state() == before
    more = Run(4, **options)
    for group in (fewer, more):
        for rank, worker in enumerate(group.workers):
            source = min(rank, 2)
            if rank < 3:
                group.models[rank].load_state_dict(run.models[rank].state_dict())
            worker.load_state_dict(*state[source], reshard=True)
            own = {name for name in kept(worker)[0] if name.startswith("residual.")}
            assert own == (
                {name for name in state[source][0] if name.removeprefix("residual.") in MATRICES} if rank < 3 else set()
            )
            assert not worker.flights
            assert (worker.steps, worker.sequence, worker.rounds) == tuple(
                state[0][1][k] for k in ("steps", "sequence", "rounds")
            )
            for name, weight in run.weights.items():
                assert torch.equal(worker.weights[name], weight)
                local = dict((run if rank < 3 else group).models[rank].named_parameters())[name]
                assert torch.equal(dict(group.models[rank].named_parameters())[name], local if rank < 3 else weight)
        group.step(8)
        assert group.workers[0].rounds > run.workers[0].rounds
        assert len({save(alike(worker)) for worker in group.workers}) == 1


def test_what_workers_share_is_not_given_while_an_exchange_is_under_way() -> None:
    run = Run(3, **HARD).step(6)
    with pytest.raises(ShoestringError, match="an exchange is under way"):
        run.workers[0].shared_state()


def test_states_that_do_not_fit_are_refused_before_anything_changes() -> None:
    run = Run(2, **HARD).step(9)
    tensors, values = kept(run.workers[0])
    fresh = Run(2, **HARD)
    before = fresh.state()
    name = "blocks.1.weight"
    for odd_tensors, odd_values, message in (
        (tensors, {k: v for k, v in values.items() if k != "rounds"}, "damaged: it has no rounds"),
        ({k: v for k, v in tensors.items() if k != f"global.{name}"}, values, f"has no global.{name}"),
        ({**tensors, "global.other": torch.ones(1)}, values, r"it has global.other \[1\]"),
        ({**tensors, f"momentum.{name}": torch.ones(2, 2)}, values, rf"it has momentum.{name} \[2, 2\]"),
        ({k: v for k, v in tensors.items() if "flight.2" not in k}, values, r"has no flight\.2\."),
        (
            tensors,
            {**values, "schedule": {**values["schedule"], "every": 7}},
            "of another 'every', and this is 'every' = 6",
        ),
    ):
        with pytest.raises(ShoestringError, match=message):
            fresh.workers[0].load_state_dict(odd_tensors, odd_values)
    assert fresh.state() == before
    with pytest.raises(ShoestringError, match="another 'fragments', and this is 1 fragments"):
        DiLoCo(Tower(), every=6, overlap=4).join(*fresh.workers[0].shared_state())
    with pytest.raises(ShoestringError, match="damaged: it has no rounds"):
        fresh.workers[0].join({}, {"schedule": {}, "steps": 1, "sequence": 1, "applied": []})
