import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_diloco import train as reference
from safetensors.torch import load, save
from small_codecs import STEP, Grid, Sparse, Tampered, Tower, WaitingGroup, give_gradients, gradient
from torch import Tensor, nn

from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.codecs.floats import Float32
from shoestring.sync.codecs.linear import Linear
from shoestring.sync.diloco import DiLoCo
from shoestring.sync.feedback import ErrorFeedback
from shoestring.sync.flight import Round
from shoestring.sync.fragments import Fragments
from shoestring.sync.lockstep import Lockstep
from shoestring.sync.outer import OuterSGD
from shoestring.sync.transport.base import PeerLost
from shoestring.sync.transport.local import LocalGroup

INNER_LR = 0.05


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Run:
    """K workers in lock-step on mock gradients, with SGD inside."""

    def __init__(self, workers: int, *, dtype: torch.dtype = torch.float32, group: Any = None, **options: Any) -> None:
        self.group = group or LocalGroup(workers)
        self.models = [Tower(dtype) for _ in range(workers)]
        self.inner = [torch.optim.SGD(model.parameters(), lr=INNER_LR, momentum=0.0) for model in self.models]
        self.workers = [
            DiLoCo(model, inner, transport=self.transport(rank), **options)
            for rank, (model, inner) in enumerate(zip(self.models, self.inner, strict=True))
        ]
        self.lockstep = Lockstep(self.workers)
        self.rounds: list[list[Round]] = []

    def transport(self, rank: int) -> Any:
        return self.group.transports[rank]

    def inner_step(self) -> None:
        for rank, (model, inner) in enumerate(zip(self.models, self.inner, strict=True)):
            give_gradients(model, rank, self.workers[rank].steps + 1)
            inner.step()

    def step(self, times: int = 1) -> "Run":
        for _ in range(times):
            self.inner_step()
            self.rounds += self.lockstep.step([{"rank": rank} for rank in range(len(self.workers))])
        return self

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.workers[0].weights

    def state(self) -> list[bytes]:
        """All that there is, bit for bit: local weights, and the outer state."""
        return [
            save({**kept(worker)[0], **{f"local.{n}": p.detach() for n, p in model.named_parameters()}})
            for worker, model in zip(self.workers, self.models, strict=True)
        ]


def kept(worker: DiLoCo) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A saved state, through the bytes of its files."""
    tensors, values = worker.state_dict()
    return load(save({name: tensor.contiguous() for name, tensor in tensors.items()})), json.loads(json.dumps(values))


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


def grid(value: float) -> float:
    return round(value / STEP) * STEP


MATRICES = {name: grid for name, parameter in Tower().named_parameters() if parameter.ndim >= 2}
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


HARD: dict[str, Any] = {
    "every": 6,
    "codec": Grid(),
    "feedback": ErrorFeedback(0.9),
    "fragments": Fragments("strided", 3),
    "overlap": 4,
}


@pytest.mark.parametrize("average", ["gather", "scatter"])
@pytest.mark.parametrize("at", [1, 6, 9, 11])
def test_resume_in_mid_flight_is_bit_exact(average: Any, at: int) -> None:
    straight = Run(3, average=average, **HARD).step(at)
    assert len(straight.workers[0].flights) == {1: 0, 6: 2, 9: 2, 11: 2}[at]
    again = Run(3, average=average, **HARD)
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


def test_a_state_says_which_fragments_have_not_moved_since() -> None:
    options = {**HARD, "overlap": 0, "average": "gather"}
    straight, again = Run(2, **options).step(8), Run(2, **options)
    for new, old, model, was in zip(again.workers, straight.workers, again.models, straight.models, strict=True):
        model.load_state_dict(was.state_dict())
        new.load_state_dict(*kept(old))
    joined = Run(2, **options)
    for worker in joined.workers:
        worker.join(*straight.workers[0].shared_state())
    for run in (straight, again, joined):
        assert [sorted(r.fragment for r in own) for own in run.lockstep.synchronise()] == [[1, 2], [1, 2]]


class Broken(Run):
    """A run in which some messages arrive damaged. faults: (rank, number of the exchange) where all is lost."""

    faults: set[tuple[int, int]]

    def transport(self, rank: int) -> Any:
        def change(number: int, messages: list[Tensor | None]) -> list[Tensor | None]:
            if (rank, number) in self.faults:
                return [None if other != rank else message for other, message in enumerate(messages)]
            return messages

        return Tampered(super().transport(rank), change)


@pytest.mark.parametrize("average", ["gather", "scatter"])
@pytest.mark.parametrize("overlap", [0, 1])
def test_an_abandoned_round_leaves_everything_as_it_was(average: Any, overlap: int) -> None:
    options = {**HARD, "every": 3, "fragments": Fragments(), "overlap": overlap, "average": average}
    stages = 2 if average == "gather" else 3
    Broken.faults = {(1, stages)}  # the first stage of the second round, at one worker
    run = Broken(3, **options).step(5 + overlap)
    assert all(r.committed for own in run.rounds for r in own)
    rounds = run.workers[0].rounds
    run.inner_step()
    before = run.state()
    flights = [list(worker.flights) for worker in run.workers]
    ended = run.lockstep.step()
    assert [(r.committed, r.damaged, r.notes) for own in ended for r in own] == [
        (False, damaged, [None] * 3) for damaged in ([], [0, 2], [])
    ]
    without = [[name for name in load(state) if not name.startswith("flight.")] for state in before]
    for old, new, names in zip(before, run.state(), without, strict=True):
        assert all(torch.equal(load(old)[name], load(new)[name]) for name in names)
    assert run.workers[0].rounds == rounds
    assert all(not worker.flights for worker in run.workers)
    assert all(flights) or overlap == 0
    # the next round holds what this one would have
    run.step(3)
    assert run.workers[0].rounds == rounds + 1
    moved = [
        w.weights["norm.weight"] - load(old)["global.norm.weight"] for w, old in zip(run.workers, before, strict=True)
    ]
    assert moved[0].abs().max() > 0
    assert torch.equal(moved[0], moved[2])


@pytest.mark.parametrize("overlap", [0, 2])
@pytest.mark.parametrize("average", ["gather", "scatter"])
def test_a_worker_that_is_not_finite_is_dropped_reported_and_mended(overlap: int, average: Any) -> None:
    run = Run(3, every=4, overlap=overlap, average=average, feedback=ErrorFeedback(), codec=Grid())
    run.inner[1] = torch.optim.SGD(run.models[1].parameters(), lr=INNER_LR, momentum=0.9)
    run.workers[1].inner = run.inner[1]
    run.step(3)
    run.models[1].blocks[2].weight.data[0, 0] = math.nan
    run.inner[1].state[run.models[1].blocks[2].weight]["momentum_buffer"][0, 0] = math.nan
    run.step(1 + overlap)
    for (ended,) in run.rounds[-3:]:
        assert (ended.committed, ended.participants, ended.dropped) == (True, [0, 2], [1])
    assert all(tensor.isfinite().all() for worker in run.workers for tensor in kept(worker)[0].values())
    assert all(torch.equal(run.workers[1].weights[n], p) for n, p in run.models[1].named_parameters())
    assert not any(run.inner[1].state[p] for p in run.models[1].parameters())
    run.step(8)
    for (ended,) in run.rounds[-3:]:
        assert ended.participants == [0, 1, 2]


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


def loop(outer: DiLoCo, rank: int, steps: int, pause: Callable[[], None]) -> list[Round]:
    """A user's own loop."""
    inner = outer.inner
    assert inner is not None
    ended = []
    with outer:
        for step in range(1, steps + 1):
            give_gradients(outer.model, rank, step)
            pause()
            inner.step()
            inner.zero_grad()
            ended += outer.step({"rank": rank})
        ended += outer.synchronise()
    return ended


def threads(
    workers: int, steps: int, pause: Callable[[], None], **options: Any
) -> tuple[list[DiLoCo], list[list[Round]]]:
    group = WaitingGroup(workers, pause)
    outers = []
    for rank in range(workers):
        model = Tower()
        inner = torch.optim.SGD(model.parameters(), lr=INNER_LR)
        outers.append(DiLoCo(model, inner, transport=group.transports[rank], **options))
    ended: list[list[Round]] = [[] for _ in range(workers)]

    def work(rank: int) -> None:
        ended[rank] = loop(outers[rank], rank, steps, pause)

    running = [threading.Thread(target=work, args=(rank,)) for rank in range(workers)]
    for each in running:
        each.start()
    for each in running:
        each.join(30)
    return outers, ended


@pytest.mark.parametrize("average", ["gather", "scatter"])
@pytest.mark.parametrize("overlap", [0, 2, 5])
def test_on_a_link_that_waits_the_bits_are_those_of_lock_step(overlap: int, average: Any) -> None:
    options = {**HARD, "overlap": overlap, "average": average}
    run = Run(3, **options).step(20)
    run.lockstep.synchronise()
    chance = random.Random(1)
    outers, ended = threads(3, 20, lambda: time.sleep(chance.random() * 0.004), **options)
    for outer, worker, model in zip(outers, run.workers, run.models, strict=True):
        assert save(kept(outer)[0]) == save(kept(worker)[0])
        assert kept(outer)[1] == kept(worker)[1]
        for one, other in zip(outer.model.parameters(), model.parameters(), strict=True):
            assert torch.equal(one, other)
    assert [(r.fragment, r.step, r.notes) for r in ended[0]] == [(r.fragment, r.step, r.notes) for r in ended[2]]


def test_an_overlapped_exchange_hides_behind_the_inner_steps() -> None:
    def slowly(number: int, messages: list[Tensor | None]) -> list[Tensor | None]:
        time.sleep(0.05)
        return messages

    for overlap in (0, 1):
        link = Tampered(LocalGroup(1).transports[0], slowly)
        with DiLoCo(Tower(), every=2, overlap=overlap, transport=link) as outer:
            for _ in range(2 + overlap):
                wait([flight.running for flight in outer.flights if flight.running], timeout=20)
                ended = outer.step()
        (first,) = ended
        took = first.exposed_seconds + first.hidden_seconds  # two stages
        assert took > 0.1
        assert (first.hidden_seconds > 0.8 * took) if overlap else (first.hidden_seconds == 0)


def test_a_lost_peer_abandons_the_round_and_the_loop_can_go_on() -> None:
    class Lost(Tampered):
        def __init__(self, inner: Any) -> None:
            super().__init__(inner, self.fail)
            self.failing = True

        def fail(self, number: int, messages: list[Tensor | None]) -> list[Tensor | None]:
            if self.failing:
                raise PeerLost(1, "no answer")
            return messages

    for overlap in (0, 2):
        link = Lost(LocalGroup(1).transports[0])
        model = Tower()
        with DiLoCo(model, every=3, overlap=overlap, transport=link, feedback=ErrorFeedback(), codec=Grid()) as outer:
            for _ in range(2 + overlap):
                outer.step()
            before = {name: weight.clone() for name, weight in outer.weights.items()}
            model.norm.weight.data += 1
            with pytest.raises(PeerLost, match="worker 1 is lost: no answer"):
                for _ in range(3):
                    outer.step()
            assert not outer.flights
            assert all(torch.equal(weight, before[name]) for name, weight in outer.weights.items())
            assert outer.residuals is not None
            assert not outer.residuals.tensors
            link.failing = False
            (ended,) = [r for _ in range(4) for r in outer.step()][:1]
            assert ended.committed
            assert not torch.equal(outer.weights["norm.weight"], before["norm.weight"])


def test_another_number_of_workers_is_refused_or_resharded() -> None:
    options = {**HARD, "average": "scatter"}
    run = Run(3, **options).step(9)
    state = [kept(worker) for worker in run.workers]
    assert any(name.endswith("@part") for name in state[0][0])
    fewer = Run(2, **options)
    before = fewer.state()
    with pytest.raises(
        ShoestringError, match=r"is of worker 1 of 3, and this is worker 1 of 2: load it with reshard = True"
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
        assert len({save(worker.shared_state()[0]) for worker in group.workers}) == 1


def test_a_worker_joins_a_run_with_exchanges_under_way() -> None:
    """It has the same global weights as the others from then on, and adds to rounds that begin after it came."""
    run = Run(3, **{**HARD, "average": "gather"}).step(9)
    tensors, values = run.workers[0].shared_state()
    assert (tensors.keys(), json.loads(json.dumps(values))) == (run.workers[2].shared_state()[0].keys(), values)
    run.models[1].blocks[0].weight.data.fill_(99)
    run.workers[1].join(load(save(tensors)), json.loads(json.dumps(values)))
    assert all(torch.equal(p, run.weights[name]) for name, p in run.models[1].named_parameters())
    run.rounds.clear()
    run.step(6)
    assert [own[0].participants for own in run.rounds if own] == [[0, 2]] * 6 + [[0, 1, 2]] * 3
    assert len({save(worker.shared_state()[0]) for worker in run.workers}) == 1


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
        DiLoCo(Tower(), every=6, overlap=4).join(*run.workers[0].shared_state())
    with pytest.raises(ShoestringError, match="damaged: it has no flights, rounds"):
        fresh.workers[0].join({}, {"schedule": {}, "steps": 1, "sequence": 1, "applied": []})


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
        ({"every": 2, "fragments": Fragments("strided", 3)}, "3 fragments cannot each have a step"),
    ):
        with pytest.raises(UsageError, match=message):
            DiLoCo(Tower(), **options)  # type: ignore[arg-type]
    for outer in ({"lr": 0.0}, {"lr": math.nan}, {"momentum": 1.0}):
        with pytest.raises(ValueError, match=next(iter(outer))):
            OuterSGD(**outer)
    with pytest.raises(UsageError, match="2 replicas need the ranks 0 to 1 in order"):
        Lockstep([DiLoCo(Tower(), transport=t) for t in reversed(LocalGroup(2).transports)])
    worker = DiLoCo(Tower())
    with pytest.raises(ValueError, match="128 are the most"):
        worker.step({"text": "x" * 200})
    assert worker.steps == 0


def test_replicas_that_differ_are_found_out() -> None:
    group = LocalGroup(2)
    with ExitStack() as stack:
        one, other = (stack.enter_context(DiLoCo(Tower(), every=1, transport=t)) for t in group.transports)
        other.average = "scatter"
        with pytest.raises(ShoestringError, match="some workers ended an exchange that others have not ended"):
            Lockstep([one, other]).step()
        assert not one.flights
        assert not other.flights
