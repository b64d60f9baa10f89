"""Experts from end to end: one budget for all of them, kills and resumes, and figures that add up."""

import json
import signal
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoestring.budget.ledger import Totals, read_ledger
from shoestring.budget.machine import cache_folder
from shoestring.config import build
from shoestring.contract.cost import Shape
from shoestring.data.clusters.clustering import Clustering
from shoestring.data.prepare import prepare
from shoestring.decode import AnswerSpent, Sampling, generate
from shoestring.decode.ensemble import Ensemble
from shoestring.decode.expert_weights.running_likelihood import RunningLikelihood
from shoestring.errors import UsageError
from shoestring.experts.folder import ExpertsFolder
from shoestring.experts.judgement import heldout_text, load_experts
from shoestring.train.config import RunConfig
from tests.train.command import TINY, start
from tests.train.command import shoestring_here as shoestring

PER_STEP = 4 * 32
QUICK = [word for word in TINY if "sample_tokens" not in word] + ["--train.sample_tokens=0", "--execution.device=cpu"]


@pytest.fixture(scope="module")
def two_topics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty short files: half of sums, half of a little prose."""
    folder, chance = tmp_path_factory.mktemp("topics"), np.random.default_rng(0)
    words = "the river ran slowly past old stone houses where quiet people lived and worked".split()
    for number in range(60):
        if number % 2:
            pairs = chance.integers(10, 99, (40, 2)).tolist()
            text = "".join(f"{a} + {b} = {a + b}\n" for a, b in pairs)
        else:
            text = " ".join(chance.choice(words, 90).tolist()) + ".\n"
        (folder / f"{number:02}.txt").write_text(text)
    return folder


def experts(corpus: Path, out: Path, *more: object, steps: int = 60) -> dict[str, Any]:
    words = (
        "--experts=2",
        f"--budget={steps * PER_STEP}tok",
        f"--data.corpus={corpus}",
        "--experts.top_k=1",
        "--out",
        out,
    )
    status, output, errors = shoestring("experts", *words, *QUICK, *more, "--json")
    assert status == 0, errors + output
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    assert json.loads(output) == {"stopped": "finished", **summary, "folder": str(out)}
    return summary


@pytest.fixture(scope="module")
def trained(two_topics: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Two experts of different sizes, and a dense model."""
    out = tmp_path_factory.mktemp("experts") / "run"
    return out, experts(two_topics, out, "--sizes=1x32,1x48", "--dense")


def test_each_expert_has_the_documents_of_one_topic(trained: tuple[Path, dict[str, Any]], two_topics: Path) -> None:
    out, summary = trained
    folder = ExpertsFolder.open(out)
    dataset = prepare(folder.read_config().run.data, cache_folder())
    clustering = Clustering.read(folder.clusters)
    stores = [dataset.train.document_starts[clustering.members(number)] for number in range(2)]
    digits = [np.mean([_is_sum(int(dataset.train.tokens[start])) for start in starts.tolist()]) for starts in stores]
    assert sorted(digits) == [0.0, 1.0]
    assert {expert["size"] for expert in summary["experts"]} == {"1x32x96", "1x48x128"}
    assert len({expert["difficulty"] for expert in summary["experts"]}) == 2
    harder = max(summary["experts"], key=lambda expert: expert["difficulty"])
    assert harder["size"] == "1x48x128"


def _is_sum(token: int) -> bool:
    return chr(token).isdigit()


def test_all_of_them_together_keep_to_the_one_budget(trained: tuple[Path, dict[str, Any]]) -> None:
    out, summary = trained
    runs = sorted([*(out / "seeds").glob("*/summary.json"), *(out / "experts").glob("*/summary.json")])
    assert len(runs) == 4
    tokens = sum(json.loads(path.read_text())["tokens"] for path in runs)
    assert summary["tokens"] == tokens
    assert 0 <= tokens - 60 * PER_STEP < 4 * PER_STEP  # each run may take a step that crosses its own end
    totals = Totals()
    for path in [out / "ledger.jsonl", *(path.parent / "ledger.jsonl" for path in runs)]:
        for line in read_ledger(path):
            totals = totals.plus(line if line["event"] != "judge" else {})
    assert (summary["flops"], summary["tokens"]) == (totals.flops, totals.tokens)
    assert summary["seconds"] == pytest.approx(totals.wall_clock)
    measured = [line.get("accounts", {}).get("evaluation", {}) for line in read_ledger(out / "ledger.jsonl")]
    assert sum(account.get("flops", 0) for account in measured) > 0  # the difficulty was measured, and not for nothing
    dense = json.loads((out / "dense" / "summary.json").read_text())
    assert dense["tokens"] == 60 * PER_STEP
    assert "dense" in summary["arms"]


def test_experts_know_their_own_domain_best_and_the_choice_finds_them(trained: tuple[Path, dict[str, Any]]) -> None:
    _, summary = trained
    arms = summary["arms"]
    own = {name: {domain: figures["loss"] for domain, figures in arms[name]["domains"].items()} for name in arms}
    for name, other in (("expert-0", "expert-1"), ("expert-1", "expert-0")):
        assert own[name][name] < own[other][name]
    assert arms["all, by likelihood"]["heldout_loss"] < min(arms[n]["heldout_loss"] for n in ("expert-0", "expert-1"))
    assert arms["top-1"]["heldout_loss"] < max(arms[n]["heldout_loss"] for n in ("expert-0", "expert-1"))
    assert arms["top-1"]["inference_flops_per_token"] < arms["all"]["inference_flops_per_token"]
    assert 1 <= arms["top-1"]["experts_per_window"] <= arms["all"]["experts_per_window"] == 2
    assert "merged weights" not in arms  # two sizes have no average
    for arm in arms.values():
        parts = arm["domains"].values()
        total = sum(part["loss"] * part["targets"] for part in parts) / sum(part["targets"] for part in parts)
        assert total == pytest.approx(arm["heldout_loss"])


def test_the_judged_figures_are_those_of_the_ensemble_itself(trained: tuple[Path, dict[str, Any]]) -> None:
    out, summary = trained
    folder = ExpertsFolder.open(out)
    config = folder.read_config()
    dataset = prepare(config.run.data, cache_folder())
    text = heldout_text(config, dataset, Clustering.read(folder.clusters))
    for name, k in (("top-1", 1), ("all", 0)):
        ensemble, _, _ = load_experts(out, top_k=k)
        chosen, cost = ensemble.log_probabilities(text.batch.inputs, text.batch.targets)
        found = -chosen.double().mean()
        assert float(found) == pytest.approx(summary["arms"][name]["heldout_loss"], abs=1e-5)
        per_token = cost.flops / text.batch.targets.numel()
        assert 0.8 < per_token / summary["arms"][name]["inference_flops_per_token"] <= 1  # the rest chose the experts
    likely = Ensemble(ensemble.experts, RunningLikelihood())
    found = -likely.log_probabilities(text.batch.inputs, text.batch.targets)[0].double().mean()
    assert float(found) == pytest.approx(summary["arms"]["all, by likelihood"]["heldout_loss"], abs=1e-5)
    dense = json.loads((out / "dense" / "summary.json").read_text())
    assert dense["heldout_loss"] == pytest.approx(summary["arms"]["dense"]["heldout_loss"], abs=1e-5)


def test_trained_experts_write_together(trained: tuple[Path, dict[str, Any]]) -> None:
    ensemble, tokenizer, _ = load_experts(trained[0])
    spent: list[AnswerSpent] = []
    text = list(
        generate(
            ensemble,
            tokenizer.encode("12 + 1"),
            Sampling(),
            max_new_tokens=12,
            end=tokenizer.end,
            on_end=lambda _, each: spent.append(each),
        )
    )
    assert 0 < len(text) <= 12
    assert 0 < sum(each.charge.flops for each in spent) <= ensemble.cost(Shape(1, 32)).flops * 13


STEPS = 120


@pytest.fixture(scope="module")
def of_one_size(two_topics: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Two experts of one size, from one seed."""
    out = tmp_path_factory.mktemp("equal") / "run"
    return out, experts(two_topics, out, steps=STEPS)


def test_experts_of_one_size_are_merged_and_branch_from_one_seed(of_one_size: tuple[Path, dict[str, Any]]) -> None:
    out, summary = of_one_size
    assert [path.name for path in (out / "seeds").glob("[!.]*")] == ["1x32x96"]
    assert {"merged weights", "seed 1x32x96"} <= summary["arms"].keys()
    assert summary["experts"][0]["difficulty"] is None
    configs = [build(RunConfig, _toml(path)) for path in sorted((out / "experts").glob("*/config.toml"))]
    assert len(configs) == 2
    assert all(config.model.base.endswith("seeds/1x32x96") for config in configs)
    again = out / "summary.json"
    again.unlink()
    status, _, errors = shoestring("experts", "--resume", out)
    assert status == 0, errors
    assert json.loads(again.read_text())["arms"] == summary["arms"]


def test_experts_may_begin_without_a_seed(two_topics: Path, tmp_path: Path) -> None:
    words = ("--experts.seed_share=0", "--experts.clusters.balance=documents", "--experts.difficulty=[2, 1]")
    alone = experts(two_topics, tmp_path / "alone", *words, "--experts.allocate=difficulty", steps=24)
    assert not (tmp_path / "alone" / "seeds").exists()
    assert not any(name.startswith("seed") for name in alone["arms"])
    trained_on = [expert["run"]["tokens"] for expert in alone["experts"]]
    assert trained_on == [15 * PER_STEP, 9 * PER_STEP]
    documents = [expert["documents"] for expert in alone["experts"]]
    assert abs(documents[0] - documents[1]) <= 1


def _toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


def test_killed_and_resumed_finished_experts_are_not_trained_again(
    two_topics: Path, of_one_size: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, whole = tmp_path / "killed", of_one_size[1]
    words = ("--experts=2", f"--budget={STEPS * PER_STEP}tok", f"--data.corpus={two_topics}", "--experts.top_k=1")
    process = start("experts", *words, "--out", out, *QUICK, "--train.checkpoint_every=0.05")
    _wait_for(out / "experts" / "expert-1" / "checkpoints", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first = out / "experts" / "expert-0"
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert (first / "summary.json") in before
    assert not (out / "experts" / "expert-1" / "summary.json").exists()
    status, _, errors = shoestring("experts", "--resume", out)
    assert status == 0, errors
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before
    summary = json.loads((out / "summary.json").read_text())
    losses = {name: arm["heldout_loss"] for name, arm in summary["arms"].items()}
    assert losses == {name: arm["heldout_loss"] for name, arm in whole["arms"].items()}
    assert summary["tokens"] == whole["tokens"]


def _wait_for(path: Path, process: Any, seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not path.exists() or not list(path.glob("step-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)


@pytest.mark.slow
def test_side_by_side_in_processes_of_their_own(
    two_topics: Path, of_one_size: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    apart = experts(two_topics, tmp_path / "apart", "--parallel=2", steps=STEPS)
    losses = [{name: arm["heldout_loss"] for name, arm in one["arms"].items()} for one in (apart, of_one_size[1])]
    assert losses[0] == losses[1]
    assert (tmp_path / "apart" / "experts" / "expert-0.log").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--sizes=1x32,1x32,1x32"], "3 sizes for 2 experts"),
        (["--sizes=1x33"], "'1x33' is no size"),
        (["--experts.difficulty=[1.0]"], "1 difficulties for 2 experts"),
        (["--experts.seed_share=0", "--experts.allocate=difficulty"], "nothing tells the harder clusters"),
        (["--experts.top_k=3"], "only 2 experts"),
        (["--experts.alocate=equal"], "unknown key 'alocate'"),
        (["--model.base=elsewhere"], "choose their own base"),
        (["--experts.clusters=kmeanz"], "no clusters method is named"),
        (["--budget=1MB"], "does not limit them"),
        (["--workers=2", "--sync=muloco"], "trained by one worker"),
        (["--experts=70"], "training documents cannot make 70 clusters"),
        (["--resume=nowhere"], "--resume goes on with experts as they are"),
    ],
)
def test_bad_input_is_answered_in_one_line(two_topics: Path, tmp_path: Path, words: list[str], says: str) -> None:
    given = [
        "--experts=2",
        "--budget=10ktok",
        f"--data.corpus={two_topics}",
        "--experts.top_k=1",
        f"--out={tmp_path / 'run'}",
    ]
    status, _, errors = shoestring("experts", *given, *QUICK, *words)
    assert status == 2, errors
    assert says in errors
    assert errors.count("\n") == 1


def test_a_folder_without_experts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no experts"):
        ExpertsFolder.open(tmp_path)
    status, _, errors = shoestring("experts", "--resume", tmp_path)
    assert status == 2
    assert "holds no experts" in errors
