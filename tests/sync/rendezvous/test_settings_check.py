"""Workers show each other what they begin with, before anything is averaged."""

from typing import Any

import pytest
import torch
from lockstep_run import HARD, Run, kept
from small_codecs import Grid, Tampered, Tower
from torch import nn

from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.codecs.linear import Linear
from shoestring.sync.diloco import DiLoCo
from shoestring.sync.exchange import drive
from shoestring.sync.fragments import Fragments
from shoestring.sync.lockstep import Lockstep, drive_together
from shoestring.sync.outer import OuterSGD
from shoestring.sync.rendezvous import settings_check
from shoestring.sync.transport.frame import HEADER_BYTES
from shoestring.sync.transport.local import LocalGroup


def refused(models: list[nn.Module], options: list[dict[str, Any]]) -> str:
    group = LocalGroup(len(models))
    workers = [
        DiLoCo(model, every=1, transport=link, **more)
        for model, link, more in zip(models, group.transports, options, strict=True)
    ]
    before = [weight.clone() for weight in workers[0].weights.values()]
    with pytest.raises(UsageError) as error:
        Lockstep(workers).step()
    assert all(not worker.flights and worker.rounds == 0 for worker in workers)
    assert all(torch.equal(old, new) for old, new in zip(before, workers[0].weights.values(), strict=True))
    return str(error.value)


class Renamed(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.ones(2, 3)))


SAME = "the workers of an outer loop need the same"


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (
            Tower(torch.bfloat16),
            "parameter 0 of fragment 0 = scale bfloat16 [] and worker 0 has scale float32 []",
        ),
        (
            Tower(layers=3),
            "parameter 8 of fragment 0 = norm.weight float32 [3] and worker 0 has blocks.3.weight float32 [3, 3]",
        ),
    ],
)
def test_another_model_is_refused_by_name(model: nn.Module, line: str) -> None:
    assert refused([Tower(), Tower(), model], [{}] * 3) == f"worker 2 has {line}: {SAME}"


def test_parameters_under_other_names_are_refused() -> None:
    line = refused([Renamed("one"), Renamed("other")], [{}] * 2)
    assert "worker 1 has parameter 0 of fragment 0 = other float32 [2, 3] and worker 0 has one float32 [2, 3]" in line


def test_other_first_weights_are_refused_by_name() -> None:
    other = Tower()
    with torch.no_grad():
        other.blocks[2].bias[1] += 1e-6  # type: ignore[index, operator]
    assert refused([Tower(), other], [{}] * 2) == (
        "worker 1 begins with other weights than worker 0: blocks.2.bias differs; "
        "load the same into all, or draw them from one seed"
    )


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"codec": Linear(bits=4)},
            "codec = Linear bits=4 scope=row block=128 range=mse and worker 0 has Float32",
        ),
        ({"outer": OuterSGD(0.7, 0.6)}, "outer = OuterSGD(lr=0.7, momentum=0.6, nesterov=True) and worker 0 has"),
        ({"average": "scatter"}, "average = scatter and worker 0 has auto"),
        (
            {"average_codec": Linear(bits=3)},
            "average_codec = Linear bits=3 scope=row block=128 range=mse and worker 0 has None",
        ),
    ],
)
def test_settings_that_would_part_the_global_weights_are_refused(options: dict[str, Any], line: str) -> None:
    assert line in refused([Tower(), Tower()], [{}, options])


def test_it_takes_one_small_message_to_each_other_before_the_first_round_alone() -> None:
    run = Run(3, every=2, codec=Grid()).step(6)
    rounds = [own[0] for own in run.rounds[::3] if own]
    first, *later = [(each.sent, each.received, each.sent_by_role["control"]) for each in rounds]
    assert later == [later[0]] * 2
    digest = 16
    assert [a - b for a, b in zip(first, later[0], strict=True)] == [2 * (digest + HEADER_BYTES)] * 2 + [2 * digest]
    assert sum(each.sent for each in rounds) == run.group.transports[0].traffic.sent


def test_one_worker_looks_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(settings_check, "_digest")
    model = Tower()
    with DiLoCo(model, every=1) as outer:
        (ended,) = outer.step()
    assert (ended.committed, ended.sent) == (True, 0)


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_a_run_that_goes_on_sends_what_it_would_have_sent(steps: int) -> None:
    """Before the first exchange, while it is under way, and past it."""
    straight = Run(2, **HARD).step(steps)
    before = straight.group.transports[0].traffic.sent
    again = Run(2, **HARD)
    for new, old, model, was in zip(again.workers, straight.workers, again.models, straight.models, strict=True):
        model.load_state_dict(was.state_dict())
        new.load_state_dict(*kept(old))
    again.step(8)
    straight.step(8)
    assert again.state() == straight.state()
    assert again.group.transports[0].traffic.sent == straight.group.transports[0].traffic.sent - before


def test_after_it_failed_no_exchange_follows() -> None:
    """In the thread of an overlapped loop the next one waits already, with messages of sizes that were never compared."""
    group, workers = LocalGroup(2), []
    for link, layers in zip(group.transports, (4, 3), strict=True):
        options: dict[str, Any] = {"every": 6, "overlap": 4, "fragments": Fragments("strided", 3)}
        workers.append(DiLoCo(Tower(layers=layers), transport=link, **options))
    for _ in range(5):
        assert not any(worker.begin() for worker in workers)
    first, second = ([worker.flights[number].exchange for worker in workers] for number in (0, 1))
    with pytest.raises(UsageError, match=SAME):
        drive_together(first)
    sent = group.transports[0].traffic.sent
    with pytest.raises(UsageError, match=SAME):
        drive(second[0])
    assert group.transports[0].traffic.sent == sent


def test_one_that_came_damaged_stops_the_run() -> None:
    class Damaged(Run):
        def transport(self, rank: int) -> Any:
            return Tampered(super().transport(rank), lambda number, messages: [messages[0], None])

    with pytest.raises(ShoestringError, match="the settings of worker 1 arrived damaged"):
        Damaged(2, every=1).step()
