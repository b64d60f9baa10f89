"""Training by a pipeline of processes is training; and what goes wrong is told in one line."""

import copy
import json
import multiprocessing
import socket
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
import torch
from tiny_stages import Body, Loss, OneProcess, adamw, batches, make, tokens_of, weights
from torch import nn

from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.pipeline import processes
from shoestring.sync.pipeline.batch import MicroBatch
from shoestring.sync.pipeline.engine import Pipeline
from shoestring.sync.pipeline.wire import MAGIC, PREFIX, Frame
from shoestring.sync.recovery.checkfree import CheckFree
from shoestring.sync.recovery.checkfree_plus import CheckFreePlus
from shoestring.sync.recovery.checkpoint import CheckpointRestart
from shoestring.sync.recovery.redundant import Redundant


@pytest.mark.parametrize("policy", [CheckFree(), CheckFreePlus()])
def test_a_pipeline_trains_as_one_process_does_bit_for_bit(policy: CheckFree | CheckFreePlus) -> None:
    first, stages, last = make()
    reference = OneProcess([copy.deepcopy(m) for m in (first, *stages, last)], policy.route)
    with Pipeline(first, stages, last, optimizer=adamw, batches=batches, recovery=policy) as pipeline:
        for step in range(4):
            factor = 1 / (1 + step)
            assert pipeline.train_step(factor).loss == pytest.approx(reference.train_step(factor), rel=1e-6)
        pipeline.collect()
        sent = pipeline.bytes_by_role()
    for ours, theirs in zip(weights(pipeline.modules), weights(reference.modules), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert sent["activation"] > 0
    assert sent["gradient"] > 0
    assert (sent["copy"] > 0) == isinstance(policy, CheckFreePlus)
    accounts = pipeline.accounts
    assert accounts.tokens_seen == accounts.tokens_useful == sum(map(tokens_of, range(4)))


def test_clipping_is_by_the_norm_of_the_whole_model() -> None:
    first, stages, last = make(stages=2)
    reference = OneProcess([copy.deepcopy(m) for m in (first, *stages, last)], clip=0.05)
    with Pipeline(first, stages, last, optimizer=adamw, batches=batches, recovery=Redundant(), clip=0.05) as pipeline:
        for _ in range(3):
            assert pipeline.train_step().gradient_norm > 0.05
            reference.train_step()
        pipeline.collect()
    for ours, theirs in zip(weights(pipeline.modules), weights(reference.modules), strict=True):
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


def test_strangers_at_the_doors_change_nothing() -> None:
    first, stages, last = make(stages=3)
    reference = OneProcess([copy.deepcopy(m) for m in (first, *stages, last)])
    with make_pipeline(first, stages, last) as pipeline:
        doors = [member.address for member in pipeline._processes.members.values()]
        for content in (b"GET / HTTP/1.1\r\n\r\n", PREFIX.pack(MAGIC, 100, bytes(16)) + bytes(100)):
            for door in doors:
                with socket.create_connection(door) as stranger:
                    stranger.sendall(content)
        for _ in range(2):
            pipeline.train_step()
            reference.train_step()
        pipeline.collect()
        assert pipeline.accounts.failures == 0
    for ours, theirs in zip(weights(pipeline.modules), weights(reference.modules), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_stage_that_its_neighbour_cannot_reach_is_replaced() -> None:
    with make_pipeline(*make(stages=2), recovery=Redundant()) as pipeline:
        pipeline.train_step()
        members = pipeline._processes.members
        addresses = [[*member.address, member.generation] for _, member in sorted(members.items())]
        addresses[1][1] = 1  # nobody listens there
        pipeline._processes.send(0, Frame("peers", fields={"addresses": addresses}))
        lost = pipeline.processes()[1]
        pipeline.train_step()
        assert pipeline.accounts.failures == 1
        assert pipeline.processes()[1] != lost


def test_a_stage_gets_no_work_before_it_knows_where_the_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    send = processes.StageProcesses.send

    def send_late(self: processes.StageProcesses, stage: int, frame: Frame, role: str = "control") -> None:
        if frame.kind == "peers" and stage == 1:
            threading.Timer(0.5, send, (self, stage, frame, role)).start()
        else:
            send(self, stage, frame, role)

    monkeypatch.setattr(processes.StageProcesses, "send", send_late)
    with make_pipeline(*make(stages=3)) as pipeline:
        pipeline.train_step()
        assert pipeline.accounts.failures == 0


def bad_targets(step: int) -> list[MicroBatch]:
    made = batches(step)
    if step == 1:
        made[0].targets.fill_(1000)
    return made


def test_a_stage_that_ends_with_an_error_of_its_own_is_not_recovered_for_ever(tmp_path: Path) -> None:
    first, stages, last = make(stages=2)
    policy = CheckpointRestart()
    with Pipeline(
        first, stages, last, optimizer=adamw, batches=bad_targets, recovery=policy, folder=tmp_path
    ) as pipeline:
        pipeline.train_step()
        with pytest.raises(ShoestringError, match="stage 1 ended with an error"):
            pipeline.train_step()


def make_pipeline(first: nn.Module, stages: list[nn.Module], last: nn.Module, **options: object) -> Pipeline:
    settings: dict[str, object] = {"optimizer": adamw, "batches": batches, "recovery": CheckFree()}
    return Pipeline(first, stages, last, **{**settings, **options})  # type: ignore[arg-type]


def test_what_cannot_be_cut_so_is_refused_before_any_process_starts() -> None:
    first, stages, last = make()
    tied = Loss()
    tied.head.weight = first.weight  # type: ignore[assignment]
    with pytest.raises(UsageError, match="untie"):
        make_pipeline(first, stages, tied)
    with pytest.raises(UsageError, match="stage 2 differs"):
        make_pipeline(first, [*stages[:2], Body(16), stages[3]], last)
    with pytest.raises(UsageError, match="at least 3 stages"):
        make_pipeline(first, stages[:2], last)
    with pytest.raises(UsageError, match="3 stages"):
        make_pipeline(first, stages[:3], last, recovery=CheckFreePlus())
    with pytest.raises(UsageError, match="at least one stage"):
        make_pipeline(first, [], last, recovery=CheckpointRestart())
    with pytest.raises(UsageError, match="cannot be sent"):
        make_pipeline(first, stages, last, optimizer=lambda module: adamw(module))


def train_until_killed(pids: Connection) -> None:
    processes.START_METHOD = "fork"  # it has torch already, where a fork server of its own would import it anew
    with make_pipeline(*make()) as pipeline:
        pipeline.train_step()
        pids.send_bytes(json.dumps(pipeline.processes()).encode())
        while True:
            pipeline.train_step()


def test_no_stage_outlives_a_coordinator_that_is_killed() -> None:
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe()
    coordinator = context.Process(target=train_until_killed, args=(there,))
    coordinator.start()
    assert here.poll(60)
    stages = [psutil.Process(pid) for pid in json.loads(here.recv_bytes())]
    assert len(stages) == 4
    coordinator.kill()
    coordinator.join()
    _, alive = psutil.wait_procs(stages, timeout=10)
    assert not alive
