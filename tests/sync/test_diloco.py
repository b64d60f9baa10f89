import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lockstep_run import INNER_LR, MATRICES, Run, kept
from reference_diloco import train as reference
from safetensors.torch import save
from small_codecs import Grid, Sparse, Tower, give_gradients, gradient
from torch import Tensor, nn

from shoestring.errors import UsageError
from shoestring.sync.codecs.floats import Float32
from shoestring.sync.codecs.linear import Linear
from shoestring.sync.diloco import DiLoCo
from shoestring.sync.feedback import ErrorFeedback
from shoestring.sync.fragments import Fragments
from shoestring.sync.lockstep import Lockstep
from shoestring.sync.outer import OuterSGD
from shoestring.sync.transport.local import LocalGroup


def check(run: Run, expected: tuple[dict[str, list[float]], list[dict[str, list[float]]]], tolerance: float) -> None:
    for worker in run.workers:
        for name, values in expected[0].items():
            assert torch.equal(worker.weights[name], run.weights[name])
            torch.testing.assert_close(
                worker.weights[name].reshape(-1).double(), torch.tensor(values).double(), rtol=0, atol=tolerance
            )
    for model, local in zip(run.models, expected[1], strict=True):
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(
                parameter.detach().reshape(-1).double(), torch.tensor(local[name]).double(), rtol=0, atol=tolerance
            )


def by_name(model: nn.Module) -> Callable[[int, int, str, int], float]:
    places, place = {}, 0
    for name, parameter in model.named_parameters():
        places[name], place = place, place + parameter.numel()
    return lambda worker, step, name, index: gradient(worker, step, places[name] + index)


def expected(run: Run, steps: int, **options: Any) -> Any:
    model = Tower()
    outer = run.workers[0]
    return reference(
        {name: parameter.detach().reshape(-1).tolist() for name, parameter in model.named_parameters()},
        [[name for name, _ in part] for part in outer.fragments],
        by_name(model),
        workers=len(run.workers),
        steps=steps,
        inner_lr=INNER_LR,
        every=outer.every,
        lr=outer.outer.lr,
        momentum=outer.outer.momentum,
        overlap=outer.overlap,
        mixing=outer.mixing,
        **options,
    )


SCHEDULES: list[dict[str, Any]] = [
    {"every": 4},
    {"every": 6, "outer": OuterSGD(0.7, 0.6), "fragments": Fragments("strided", 3)},
    {"every": 6, "fragments": Fragments("sequential", 2), "overlap": 2, "mixing": 0.5},
    {"every": 5, "fragments": Fragments("strided", 5), "overlap": 4, "mixing": 0.25, "outer": OuterSGD(1.0, 0.0)},
    {"every": 3, "overlap": 1, "mixing": 1.0},
]


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("schedule", range(len(SCHEDULES)))
@pytest.mark.parametrize("average", ["gather", "scatter"])
def test_agrees_with_the_reference(workers: int, schedule: int, average: Any) -> None:
    run = Run(workers, average=average, **SCHEDULES[schedule]).step(20)
    check(run, expected(run, 20), 2e-6)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("schedule", [0, 2])
@pytest.mark.parametrize("average", ["gather", "scatter"])
@pytest.mark.parametrize("decay", [None, 0.75])
def test_agrees_with_the_reference_where_the_codec_loses(
    workers: int, schedule: int, average: Any, decay: float | None
) -> None:
    feedback = None if decay is None else ErrorFeedback(decay)
    run = Run(workers, average=average, codec=Grid(), feedback=feedback, **SCHEDULES[schedule]).step(18)
    check(run, expected(run, 18, quantise=MATRICES, decay=decay, scatter=average == "scatter"), 1e-5)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("schedule", [0, 2])
@pytest.mark.parametrize("average", ["gather", "scatter"])
@pytest.mark.parametrize("final", [False, True])
def test_agrees_with_the_reference_where_weights_hold_what_the_codec_lost(
    workers: int, schedule: int, average: Any, final: bool
) -> None:
    feedback = ErrorFeedback(0.75, held="weights")
    run = Run(workers, average=average, codec=Grid(), feedback=feedback, **SCHEDULES[schedule]).step(17)
    if final:
        run.lockstep.synchronise()
    scatter = average == "scatter"
    check(run, expected(run, 17, quantise=MATRICES, decay=0.75, scatter=scatter, in_weights=True, final=final), 1e-5)


@pytest.mark.parametrize("held", ["accumulator", "weights"])
@pytest.mark.parametrize("schedule", [0, 2])
def test_agrees_with_the_reference_where_averages_have_a_codec_of_their_own(held: Any, schedule: int) -> None:
    feedback = ErrorFeedback(0.75, held=held)
    run = Run(4, codec=Grid(), average_codec=Float32(), feedback=feedback, **SCHEDULES[schedule]).step(18)
    in_weights = held == "weights"
    whole = expected(run, 18, quantise=MATRICES, quantise_average={}, decay=0.75, scatter=True, in_weights=in_weights)
    check(run, whole, 1e-5)


def test_the_mean_of_workers_that_hold_what_was_lost_is_what_no_codec_touched() -> None:
    """With a plain outer step of rate 1, however coarse the codec is."""
    outer = OuterSGD(1.0, 0.0)
    run = Run(4, average="gather", every=3, outer=outer, codec=Grid(), feedback=ErrorFeedback(1.0, held="weights"))
    whole = Run(4, average="gather", every=3, outer=outer)
    run.step(12)
    whole.step(12)
    far = 0.0
    for name, weight in whole.weights.items():
        mean = torch.stack([dict(model.named_parameters())[name] for model in run.models]).mean(0)
        torch.testing.assert_close(mean, weight, rtol=0, atol=1e-6)
        far = max(far, (run.weights[name] - weight).abs().max().item())
    assert far > 1e-3


@pytest.mark.parametrize("overlap", [0, 3])
@pytest.mark.parametrize("steps", [14, 15, 18])
def test_synchronise_ends_the_run(overlap: int, steps: int) -> None:
    """Local and global weights are the same; a fragment whose exchange began at this very step is not exchanged twice."""
    run = Run(2, every=6, overlap=overlap, fragments=Fragments("strided", 3)).step(steps)
    rounds = run.lockstep.synchronise()
    check(run, expected(run, steps, final=True), 2e-6)
    for worker, model in zip(run.workers, run.models, strict=True):
        assert all(torch.equal(worker.weights[name], p) for name, p in model.named_parameters())
        assert not worker.flights
    assert [{r.fragment for r in own} == {0, 1, 2} or overlap == 0 for own in rounds] == [True, True]
    before = run.state()
    assert run.lockstep.synchronise() == [[], []]
    assert run.state() == before


def test_the_numbers_of_constant_gradients() -> None:
    """d = H lr g moves each round; with mu = 0.9: u = d, 1.9 d, 2.71 d; theta falls by 0.7 (d + 0.9 u)."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    with DiLoCo(model, every=5) as outer:
        seen = []
        for _ in range(15):
            model.weight.data -= 0.1
            seen += [(r.fragment, r.step, r.committed) for r in outer.step()]
    d = 0.5
    want = -sum(0.7 * (d + 0.9 * u) for u in (d, 1.9 * d, 2.71 * d))
    assert model.weight.item() == pytest.approx(want, abs=1e-6)
    assert seen == [(0, 5, True), (0, 10, True), (0, 15, True)]


@settings(max_examples=30, deadline=None)
@given(
    lr=st.floats(0.01, 2),
    momentum=st.floats(0, 0.99),
    nesterov=st.booleans(),
    seed=st.integers(0, 99),
    rounds=st.integers(1, 5),
)
def test_the_outer_step_is_that_of_torch_bit_for_bit(
    lr: float, momentum: float, nesterov: bool, seed: int, rounds: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ours = {"w": torch.randn(3, 5, generator=generator)}
    theirs = nn.Parameter(ours["w"].clone())
    peer = torch.optim.SGD([theirs], lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0)
    momenta: dict[str, Tensor] = {}
    gradients = torch.randn(rounds, 3, 5, generator=generator)
    before = gradients.clone()
    for each in gradients:
        theirs.grad = each
        OuterSGD(lr, momentum, nesterov).step(ours, momenta, {"w": theirs.grad})
        peer.step()
        assert torch.equal(ours["w"], theirs)
    assert torch.equal(gradients, before)


def test_rate_one_without_momentum_is_the_mean_of_the_models() -> None:
    run = Run(4, every=3, outer=OuterSGD(1.0, 0.0)).step(2)
    run.inner_step()
    mean = {name: torch.stack([dict(m.named_parameters())[name] for m in run.models]).mean(0) for name in run.weights}
    run.lockstep.step()
    for name, weight in run.weights.items():
        torch.testing.assert_close(weight, mean[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("codec", [Float32(), Linear(bits=2), Linear(bits=1), Sparse()])
@pytest.mark.parametrize("average", ["gather", "scatter"])
def test_all_workers_hold_the_same_global_weights_bit_for_bit(codec: Any, average: Any) -> None:
    run = Run(
        3,
        every=3,
        codec=codec,
        average=average,
        feedback=ErrorFeedback(0.9),
        fragments=Fragments("strided", 2),
        overlap=1,
    ).step(11)
    shared = [save(worker.shared_state()[0]) for worker in run.workers]
    assert shared[0] == shared[1] == shared[2]
    assert run.workers[0].shared_state()[1] == run.workers[2].shared_state()[1]
    assert len({save({n: p.detach() for n, p in model.named_parameters()}) for model in run.models}) == 3


def test_global_weights_for_a_while() -> None:
    run = Run(2, every=4, dtype=torch.bfloat16).step(6)
    worker, model = run.workers[0], run.models[0]
    local = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(KeyError), worker.global_weights():
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, worker.weights[name].bfloat16())
            assert not torch.equal(parameter, local[name])
        raise KeyError
    assert all(torch.equal(p, local[name]) for name, p in model.named_parameters())


def test_models_of_bfloat16_have_global_weights_of_float32() -> None:
    run = Run(2, every=4, overlap=1, codec=Grid(), feedback=ErrorFeedback(), dtype=torch.bfloat16).step(9)
    tensors, _ = kept(run.workers[0])
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert {p.dtype for p in run.models[0].parameters()} == {torch.bfloat16}
    assert any(not torch.equal(w, w.bfloat16().float()) for w in run.weights.values())
    run.lockstep.synchronise()
    assert all(torch.equal(p, run.weights[name].bfloat16()) for name, p in run.models[1].named_parameters())


def test_rounds_tell_what_was_sent_and_said() -> None:
    group = LocalGroup(2)
    run = Run(2, group=group, every=4, fragments=Fragments("strided", 2), roles={"embedding.weight": "embedding"}).step(
        8
    )
    assert [r.fragment for own in run.rounds for r in own] == [0, 0, 1, 1] * 2
    assert [r.step for own in run.rounds for r in own] == [2, 2, 4, 4, 6, 6, 8, 8]
    assert all(r.notes == [{"rank": 0}, {"rank": 1}] for own in run.rounds for r in own)
    mine = [r for own in run.rounds[::2] for r in own]
    assert sum(r.sent for r in mine) == group.transports[0].traffic.sent
    assert sum(r.received for r in mine) == group.transports[0].traffic.received
    counted = sum((r.sent_by_role for r in mine), start=type(mine[0].sent_by_role)())
    assert counted == group.transports[0].traffic.sent_by_role
    assert counted["embedding"] == 2 * 4 * 15
    assert all(r.exposed_seconds > 0 == r.hidden_seconds for r in mine)


def test_one_worker_smooths_its_own_path() -> None:
    """K = 1 is the same code: MuLoCo-1's u <- mu u + eta Delta; theta <- theta - mu u - eta Delta."""
    model = Tower()
    eta, mu = 0.7, 0.6
    theta = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    u = {name: torch.zeros_like(value) for name, value in theta.items()}
    with DiLoCo(model, every=2, outer=OuterSGD(eta, mu)) as outer:
        for step in range(1, 9):
            give_gradients(model, 0, step)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(parameter.grad, alpha=INNER_LR)  # type: ignore[arg-type]
            local = {name: p.detach().double().clone() for name, p in model.named_parameters()}
            for ended in outer.step():
                assert (ended.sent, ended.participants) == (0, [0])
                for name in theta:
                    delta = theta[name] - local[name]
                    u[name] = mu * u[name] + eta * delta
                    theta[name] = theta[name] - mu * u[name] - eta * delta
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), theta[name], rtol=0, atol=1e-6)


def test_bad_settings() -> None:
    for options, message in (
        ({"every": 0}, "every = 0: an exchange follows at least one inner step"),
        ({"every": 3, "overlap": 3}, "overlap = 3 must be at least 0 and below every = 3"),
        ({"overlap": -1}, "overlap = -1"),
        ({"mixing": 1.5}, "mixing = 1.5 must be between 0 and 1"),
        ({"average": "ring"}, "average must be auto, gather or scatter, not 'ring'"),
        ({"average": "gather", "average_codec": Float32()}, "average_codec has nothing to pack"),
        ({"every": 2, "fragments": Fragments("strided", 3)}, "3 fragments cannot each have a step"),
    ):
        with pytest.raises(UsageError, match=message):
            DiLoCo(Tower(), **options)
    outer: dict[str, Any]
    for outer in ({"lr": 0.0}, {"lr": math.nan}, {"momentum": 1.0}):
        with pytest.raises(ValueError, match=next(iter(outer))):
            OuterSGD(**outer)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="2 replicas need the ranks 0 to 1 in order"):
        Lockstep([DiLoCo(Tower(), transport=t) for t in reversed(LocalGroup(2).transports)])
    worker = DiLoCo(Tower())
    with pytest.raises(ValueError, match="128 are the most"):
        worker.step({"text": "x" * 200})
    assert worker.steps == 0
