"""What a run does with more than a learning rate: milestones, growing batches, noise scales, extra derivatives."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shoestring.budget.ledger import Totals, read_ledger
from shoestring.config import read_toml
from shoestring.schedule.refinement import refined_points
from shoestring.train import checkpoint
from tests.train.command import TINY, newest_weights
from tests.train.command import shoestring_here as shoestring

PER_STEP = 4 * 32
MODEL = [word for word in TINY if not word.startswith("--train.sample_tokens")] + ["--train.sample_tokens=0"]


def _train(run: Path, corpus: Path, steps: int, *more: str) -> dict[str, Any]:
    words = (f"--budget={steps * PER_STEP}tok", f"--data.corpus={corpus}", "--out", run, *MODEL, *more)
    status, _, errors = shoestring("train", *words)
    assert status == 0, errors
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return summary


def _steps(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())


@pytest.mark.usefixtures("pages")
def test_wsd_s_keeps_and_registers_a_checkpoint_at_each_budget(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    schedule = ("--schedule.name=wsd_s", "--schedule.branches=[0.25, 0.5, 1.0]", "--train.keep=1")
    summary = _train(run, corpus, 80, *schedule, "--train.warmup=0.05", "--train.checkpoint_every=0.05")
    entries = json.loads((run / "milestones.json").read_text())
    assert [entry["share"] for entry in entries] == [0.25, 0.5, 1.0]
    assert [entry["step"] for entry in entries] == [20, 40, 80]
    assert [entry["tokens"] for entry in entries] == [steps * PER_STEP for steps in (20, 40, 80)]
    assert entries[-1]["heldout_loss"] == summary["heldout_loss"]
    assert _steps(run) == [20, 40, 80]

    # resumed from the first of them, the run passes the others again and ends the same
    (run / "summary.json").unlink()
    before = newest_weights(run)
    status, _, errors = shoestring("train", "--resume", run, "--from-step", 20)
    assert status == 0, errors
    assert newest_weights(run) == before
    again = json.loads((run / "milestones.json").read_text())
    assert [entry["heldout_loss"] for entry in again] == [entry["heldout_loss"] for entry in entries]
    assert _steps(run) == [20, 40, 80]


def test_a_growing_batch_counts_what_it_took(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ramp = ("--batch_size.name=ramp", "--batch_size.start=0.25", "--batch_size.over=0.5", "--train.micro_batch=1")
    summary = _train(run, corpus, 40, *ramp)
    assert 40 < summary["steps"] < 100  # more steps than at the full batch, as the first ones are smaller
    totals = Totals()
    for line in read_ledger(run / "ledger.jsonl"):
        totals = totals.plus(line)
    assert 40 * PER_STEP <= totals.tokens < 41 * PER_STEP
    assert totals.flops == summary["flops"]

    words = (f"--data.corpus={corpus}", "--out", tmp_path / "other", *MODEL, "--batch_size=ramp")
    status, _, errors = shoestring("train", "--budget=1ktok", *words, "--execution.compile=blocks")
    assert status == 2
    assert "train.micro_batch" in errors


@pytest.mark.usefixtures("pages")
def test_the_noise_scale_is_measured_on_the_way(corpus: Path, tmp_path: Path) -> None:
    summary = _train(tmp_path / "run", corpus, 60, "--train.micro_batch=1", "--train.noise_scale_every=1")
    assert summary["critical_batch"] > 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("critical_batch" in line for line in lines)
    words = ("--budget=1ktok", f"--data.corpus={corpus}", *MODEL)
    status, _, errors = shoestring("train", *words, "--train.noise_scale_every=1", "--out", tmp_path / "other")
    assert status == 2
    assert "micro_batch" in errors

    open_batch = [word for word in words if not word.startswith("--train.batch")]
    status, shown, errors = shoestring("plan", *open_batch, "--noise-scale-of", tmp_path / "run")
    assert status == 0, errors
    assert "critical batch of" in " ".join(shown.split())
    status, _, errors = shoestring("plan", "--noise-scale-of", tmp_path)
    assert status == 2
    assert "not a run" in errors


@pytest.mark.parametrize("estimator", ["gnb", "hutchinson"])
def test_second_derivatives_are_on_the_ledger(corpus: Path, tmp_path: Path, estimator: str) -> None:
    words = ("--optim.name=sophia", f"--optim.estimator={estimator}", "--optim.lr=1e-3")
    plain = _train(tmp_path / "plain", corpus, 30, "--optim.name=adamw")
    sophia = _train(tmp_path / "sophia", corpus, 30, *words)
    assert sophia["steps"] == plain["steps"] == 30
    assert sophia["flops"] > 1.02 * plain["flops"]


def test_schedule_free_is_judged_and_kept_by_its_average(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("--optim.name=schedule_free", "--schedule.name=constant", "--train.checkpoint_every=0.01")
    summary = _train(run, corpus, 60, *words)
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert found[-1]["loss"] == summary["heldout_loss"]
    last = sorted((run / "checkpoints").iterdir())[-1]
    weights, state = load_file(last / "model.safetensors"), load_file(last / "optimizer.safetensors")
    name = next(key.removesuffix(".z") for key in state if key.endswith(".z"))
    assert not torch.equal(weights[name], state[f"{name}.z"])

    from shoestring.train.trained import load_trained  # loading it must find the averaged weights, not those trained on

    assert torch.equal(load_trained(run).model.state_dict()[name], weights[name])


def test_a_transfer_rule_scales_rates_and_the_model(corpus: Path, tmp_path: Path) -> None:
    from shoestring.train.trained import load_trained

    run = tmp_path / "run"
    _train(run, corpus, 10, "--optim.name=adamw", "--transfer.name=mup", "--transfer.base_width=16")
    assert load_trained(run).config.model.output_scale == 0.5
    state = json.loads((sorted((run / "checkpoints").iterdir())[-1] / "state.json").read_text())
    rates = {group["role"]: group["base_lr"] for group in state["optimizer"]["groups"]}
    assert rates["matrix"] == 0.5 * rates["embedding"]
    words = ("--budget=1ktok", f"--data.corpus={corpus}", "--out", tmp_path / "other", *MODEL)
    status, _, errors = shoestring("train", *words, "--optim.name=muon", "--transfer.name=mup")
    assert status == 2
    assert "muon" in errors


def test_a_run_begins_where_another_ended(corpus: Path, tmp_path: Path) -> None:
    first, then = tmp_path / "first", tmp_path / "then"
    summary = _train(first, corpus, 40, "--schedule.name=constant", "--optim.name=adamw")
    onward = ("--model.base", str(first), "--train.base_optimizer=true")
    words = ("--optim.name=adamw", "--train.warmup=0", "--train.evaluate_every=0.05", *onward)
    infinite = ("--schedule.name=infinite", "--schedule.begin=constant")
    own = ("--optim.lr=1e-5", "--optim.beta2=0.99")
    assert _train(then, corpus, 40, *words, *infinite, *own)["stopped"] == "finished"
    _, kept = checkpoint.load(then / "checkpoints")
    assert [group["betas"] for group in kept.state["optimizer"]["groups"]] == [[0.9, 0.99]] * 3  # not the first run's
    lines = [json.loads(line) for line in (then / "metrics.jsonl").read_text().splitlines()]
    held_out = [line["loss"] for line in lines if line["kind"] == "heldout"]
    assert abs(held_out[0] - summary["heldout_loss"]) < 0.05  # it goes on from there, and at its own learning rate

    team = ("--workers=2", "--transport=local", "--sync.name=diloco", "--sync.every=4", "--optim.lr=1e-5")
    _train(tmp_path / "team", corpus, 40, *words, "--schedule.name=constant", *team)
    lines = [json.loads(line) for line in (tmp_path / "team" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] in ("train", "heldout")]
    assert all(abs(loss - summary["heldout_loss"]) < 0.5 for loss in losses)  # every worker goes on from there

    common = ("--budget=1ktok", f"--data.corpus={corpus}", *onward, *MODEL)
    for number, (more, said) in enumerate(
        (
            (("--optim.name=muon",), "--train.base_optimizer false"),
            (("--model.width=16",), "shape"),
            (("--train.base_optimizer=false", "--transfer=mup"), "leave transfer out"),
            (("--model.base", f"{first}/checkpoints/step-00000007"), "no model that can be opened"),
        )
    ):
        status, _, errors = shoestring("train", *common, *more, "--out", tmp_path / f"other-{number}")
        assert status == 2, errors
        assert said in errors


def test_a_schedule_is_refined_from_a_run_by_adams_norm_and_that_run_is_charged(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoestring.train.loop.LOG_SECONDS", 0.0)  # a line a step
    past = _train(tmp_path / "past", corpus, 25, "--optim.name=adamw", "--train.gradient_clip=0.01")
    lines = [json.loads(line) for line in (tmp_path / "past" / "metrics.jsonl").read_text().splitlines()]
    rows = [line for line in lines if line["kind"] == "train"]
    assert all(row["gradient_norm"] < row["gradient_norm_1"] for row in rows)  # both before clipping
    assert all(row["gradient_norm"] > 0.01 for row in rows)
    refined = ("--schedule.name=refined", f"--schedule.points={tmp_path / 'past'}", "--train.warmup=0")
    summary = _train(tmp_path / "then", corpus, 25, "--optim.name=adamw", *refined)
    assert summary["spent_before"] == {unit: past[unit] for unit in ("seconds", "flops", "tokens")}
    config = read_toml(tmp_path / "then" / "config.toml")
    assert config["schedule"]["points"]["tokens"] == past["tokens"]

    factors = refined_points([row["progress"] for row in rows], [row["gradient_norm_1"] for row in rows])
    assert config["schedule"]["points"]["factors"] == list(factors)
