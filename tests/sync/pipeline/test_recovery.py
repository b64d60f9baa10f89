"""A stage is killed with kill -9, and each policy brings back what it says it does."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from tiny_stages import OneProcess, adamw, batches, gradients, make, tokens_of, weights

from shoestring.config import Choice
from shoestring.errors import ShoestringError, UsageError
from shoestring.method import methods
from shoestring.sync.pipeline.engine import Pipeline
from shoestring.sync.pipeline.faults import Fault, FaultInjector
from shoestring.sync.pipeline.recovery import Recovery
from shoestring.sync.pipeline.route import in_order
from shoestring.sync.recovery.checkfree import CheckFree
from shoestring.sync.recovery.checkfree_plus import CheckFreePlus
from shoestring.sync.recovery.checkpoint import CheckpointRestart
from shoestring.sync.recovery.redundant import Redundant


def start(recovery: Recovery, folder: Path | None = None, timeout: float = 30.0) -> Pipeline:
    first, stages, last = make()
    return Pipeline(
        first, stages, last, optimizer=adamw, batches=batches, recovery=recovery, folder=folder, timeout=timeout
    )


def kill(pipeline: Pipeline, *stages: int, how: int = signal.SIGKILL) -> None:
    for stage in stages:
        os.kill(pipeline.processes()[stage], how)


def collected(pipeline: Pipeline) -> list[dict[str, torch.Tensor]]:
    pipeline.collect()
    return weights(pipeline.modules)


def one_process(steps: int) -> list[dict[str, torch.Tensor]]:
    first, stages, last = make()
    reference = OneProcess([first, *stages, last])
    for _ in range(steps):
        reference.train_step()
    return weights(reference.modules)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def balanced(pipeline: Pipeline) -> bool:
    accounts = pipeline.accounts
    return accounts.tokens_seen == accounts.tokens_useful + accounts.tokens_discarded


def test_checkfree_averages_the_neighbours_by_their_squared_gradient_norms() -> None:
    with start(CheckFree(lr_scale=1.5)) as pipeline:
        pipeline.train_step()
        at_last_step = collected(pipeline)
        pipeline.train_step()
        before = collected(pipeline)
        kill(pipeline, 1)
        report = pipeline.train_step(lr_factor=0.0)  # the recovered weights stay as they are
        after = collected(pipeline)

        first, stages, last = make()
        modules = [first, *stages, last]
        for module, values in zip(modules, at_last_step, strict=True):
            module.load_state_dict(values)
        gradients(modules, 1, lambda _, count: in_order(count))
        left, right = (sum(float((p.grad**2).sum()) for p in modules[part].parameters()) for part in (1, 3))  # type: ignore[misc, operator]
        for name, value in after[2].items():
            expected = (left * before[1][name] + right * before[3][name]) / (left + right)
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
        assert not equal(after[2], before[2])
        assert all(equal(after[part], before[part]) for part in (0, 1, 3, 4, 5))

        assert report.step == 2
        accounts = pipeline.accounts
        assert (accounts.failures, accounts.tokens_discarded) == (1, tokens_of(2))
        assert balanced(pipeline)
        pipeline.train_step()
        moved = [
            max(float((new[name] - old[name]).abs().max()) for name in new)
            for new, old in zip(collected(pipeline), after, strict=True)
        ]
        # AdamW's first steps are of the size of the learning rate, whatever the gradient
        assert moved[2] > 1.3 * 3e-2

        kill(pipeline, 3)
        with pytest.raises(ShoestringError, match="stage 3 is lost, and checkfree cannot"):
            pipeline.train_step()


def test_checkfree_gives_up_on_two_neighbours_lost_together() -> None:
    with start(CheckFree()) as pipeline:
        pipeline.train_step()
        pids = pipeline.processes()
        kill(pipeline, 1, 2)
        time.sleep(0.1)
        with pytest.raises(ShoestringError, match="lost together"):
            pipeline.train_step()
    assert all(not os.path.exists(f"/proc/{pid}") for pid in pids)


def test_checkfree_plus_brings_back_either_end_and_the_inside() -> None:
    with start(CheckFreePlus()) as pipeline:
        for _ in range(2):
            pipeline.train_step()
        before = collected(pipeline)
        for stage, only, neighbour in ((0, 0, 1), (3, 5, 2)):
            kill(pipeline, stage)
            pipeline.train_step(lr_factor=0.0)
            after = collected(pipeline)
            assert equal(after[only], before[only])
            assert equal(after[stage + 1], before[neighbour + 1])
            assert not equal(after[stage + 1], before[stage + 1])
            before = after
        kill(pipeline, 1)
        pipeline.train_step(lr_factor=0.0)
        after = collected(pipeline)
        assert not equal(after[2], before[2])
        for name, value in after[2].items():
            low, high = torch.minimum(before[1][name], before[3][name]), torch.maximum(before[1][name], before[3][name])
            assert ((low - 1e-6 <= value) & (value <= high + 1e-6)).all()
        # the copy that stage 1 held of the embedding died with it, and was made anew
        kill(pipeline, 0)
        pipeline.train_step(lr_factor=0.0)
        assert equal(collected(pipeline)[0], before[0])
        assert pipeline.accounts.failures == 4
        assert balanced(pipeline)
        assert pipeline.step == 6


def test_checkpoint_restart_ends_where_a_run_without_failures_does(tmp_path: Path) -> None:
    with start(CheckpointRestart(every=3, keep=1), folder=tmp_path) as pipeline:
        for _ in range(5):
            pipeline.train_step()
        kill(pipeline, 2)
        assert pipeline.train_step().step == 3
        discarded = sum(map(tokens_of, (3, 4, 5)))  # two steps rolled back, and the attempt at the next
        assert (pipeline.accounts.tokens_discarded, pipeline.step) == (discarded, 4)
        while pipeline.step < 7:
            pipeline.train_step()
        after = collected(pipeline)
        assert balanced(pipeline)
        assert pipeline.accounts.tokens_useful == sum(map(tokens_of, range(7)))
        assert all(map(equal, after, one_process(7)))
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]

        (tmp_path / "step-00000006" / "stage-1.safetensors").write_bytes(b"damaged")
        kill(pipeline, 0)
        with pytest.raises(ShoestringError, match=r"stage-1.safetensors is damaged"):
            pipeline.train_step()
    with pytest.raises(UsageError, match="another run"):
        start(CheckpointRestart(), folder=tmp_path)


def test_redundant_stages_come_back_as_they_were_from_death_and_from_a_freeze() -> None:
    with start(Redundant(), timeout=3.0) as pipeline:
        for _ in range(2):
            pipeline.train_step()
        kill(pipeline, 3)
        pipeline.train_step()
        kill(pipeline, 0, 2)
        time.sleep(0.1)
        pipeline.train_step()
        kill(pipeline, 1, how=signal.SIGSTOP)
        pipeline.train_step()
        after = collected(pipeline)
        assert pipeline.accounts.failures == 4
        assert balanced(pipeline)
    assert all(map(equal, after, one_process(5)))


def test_training_goes_on_through_faults_that_come_by_the_clock() -> None:
    faults = [Fault(0.0, 2), Fault(0.3, 0), Fault(0.3, 1), Fault(0.6, 3)]
    with start(CheckFreePlus()) as pipeline:
        injector = FaultInjector(pipeline, faults)
        injector.start()
        while len(injector.done) < len(faults) or pipeline.accounts.failures < len(faults):
            pipeline.train_step()
        injector.stop()
        losses = [pipeline.train_step().loss for _ in range(20)]
        assert injector.done == faults
        assert pipeline.accounts.failures == 4
        assert balanced(pipeline)
        assert len(pipeline.accounts.steps) == pipeline.step
    assert sum(losses) / 20 < 2.4  # log 13 is 2.56


def test_policies_are_methods_by_name_and_their_options_are_checked() -> None:
    built = Choice.of("sync", "checkfree", kind="recovery", power=1.0, lr_scale=1.2).build()
    assert (built.power, built.lr_scale) == (1.0, 1.2)
    assert {card.name for card in methods("sync", "recovery")} >= {
        "checkfree",
        "checkfree_plus",
        "checkpoint",
        "redundant",
    }
    with pytest.raises(UsageError):
        Choice.of("sync", "checkpoint", kind="recovery", every=0)
