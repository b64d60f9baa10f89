"""Runs that train for a number format: what they evaluate, keep, resume and load."""

import json
import shutil
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import Machine, cache_folder
from shoestring.config import build, merge, overrides, to_toml, tree
from shoestring.data.dataset import Dataset
from shoestring.data.prepare import prepare
from shoestring.errors import UsageError
from shoestring.log_lines import held_back
from shoestring.lowbit import lowered_layers
from shoestring.optim.adamw import AdamW
from shoestring.optim.partition import partition
from shoestring.schedule.linear import LinearDecay
from shoestring.schedule.trilm import TriLM
from shoestring.train.applied_schedules import AppliedSchedules
from shoestring.train.base import with_base
from shoestring.train.config import RunConfig
from shoestring.train.edits import stated, with_planned_tokens
from shoestring.train.former import translated
from shoestring.train.run_folder import RunFolder
from shoestring.train.starting import resume, start
from shoestring.train.trained import load_trained
from tests.train.command import TINY, newest_weights, shoestring_here

PER_STEP = 4 * 32
MACHINE = Machine("cpu", "a processor", 1, 2**34, (), {"float32": 1e11}, 1e10)
SAVING = ("--train.checkpoint_every=0.0001", "--train.keep=100")


@pytest.fixture(scope="module")
def data(corpus: Path) -> Dataset:
    config = build(RunConfig, merge({"budget": "1ktok", "model": {}}, overrides([*TINY, f"--data.corpus={corpus}"])))
    return prepare(config.data, cache_folder())


def train(run: Path, data: Dataset, steps: int, *words: str) -> tuple[dict[str, Any], str]:
    """(the summary, what was said), of a run without the plan and the pages about it."""
    asked = overrides([*TINY, "--train.sample_tokens=0", *words])
    if "base" in asked["model"]:
        asked = with_base(asked)
    config = build(RunConfig, merge({"budget": f"{steps * PER_STEP}tok"}, asked))
    with held_back("shoestring") as said, RunFolder.create(run) as folder:
        data.tokenizer.save(folder.tokenizer)
        ledger = Ledger(folder.ledger)
        found = start(config, folder, ledger, data, MACHINE, lambda line: None)
        ledger.close()
    return found.summary, "\n".join(said)


def go_on(run: Path, data: Dataset, step: int) -> None:
    folder = RunFolder.open(run)
    resume(folder, folder.read_config(), Ledger(folder.ledger), data, lambda line: None, step)


def heldout(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "heldout"]


def test_it_says_what_is_quantised_and_keeps_latent_weights(data: Dataset, tmp_path: Path) -> None:
    words = (
        "--edits=ternary",
        "--edits.ternary.scale=row",
        "--edits.ternary.activations=int8",
        '--edits.ternary.keep=["*.gate_up"]',
    )
    summary, said = train(tmp_path / "run", data, 60, *words)
    assert "ternary weights (scale = row" in said
    assert "activations int8: 3 matrices" in said
    assert "in higher precision: embedding, blocks.*.channel_mixer.gate_up, and vectors" in said
    assert "quantised from the first step on" in said

    trained = load_trained(tmp_path / "run")
    layers = list(lowered_layers(trained.model))
    assert [(layer.format.scale, layer.activations, layer.active) for layer in layers] == [("row", "int8", True)] * 3
    stored = json.loads((tmp_path / "run" / "summary.json").read_text())["lowbit"]
    assert stored == summary["lowbit"] == stated(trained.model)["lowbit"]
    assert stored["matrices"] == 3
    assert stored["lowered"] == [
        f"blocks.*.{name}" for name in ("token_mixer.qkv", "token_mixer.output", "channel_mixer.output")
    ]
    assert stored["kept"] == ["embedding", "blocks.*.channel_mixer.gate_up"]
    weight = load_file(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1] / "model.safetensors")
    latent = weight["blocks.0.token_mixer.qkv.weight"]
    assert len(latent.unique()) > 100  # not three values
    assert torch.equal(layers[0].weight, latent)
    assert list(trained.config.edits[0].options["keep"]) == ["*.gate_up"]
    assert summary["heldout_loss"] < 4  # bytes, from about 5.5


@pytest.mark.usefixtures("pages")
def test_the_command_plans_the_tokens_and_leaves_a_plain_model_for_transformers(corpus: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    run, words = (
        tmp_path / "run",
        (f"--budget={30 * PER_STEP}tok", f"--data.corpus={corpus}", *TINY, "--edits=ternary"),
    )
    status, shown, errors = shoestring_here("train", *words, "--edits.ternary.active=compute_optimal", "--out", run)
    assert status == 0, errors
    said = " ".join(shown.split())
    assert "over the last 10.0% of the budget, while the learning rate decays" in said
    assert "with ternary folded into plain weights" in said
    trained = load_trained(run)
    assert trained.config.edits[0].options["active"]["tokens"] == 30 * PER_STEP
    assert with_planned_tokens(trained.config.edits, 1.0) == trained.config.edits
    theirs = AutoModelForCausalLM.from_pretrained(run / "transformers")
    tokens = torch.arange(30).view(1, 30)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, trained.model(tokens), atol=1e-4, rtol=1e-4)
    assert len(theirs.model.layers[0].self_attn.o_proj.weight.unique()) <= 3


@pytest.mark.parametrize(
    "flags",
    [
        ("--edits=ternary", "--edits.ternary.activations=int8"),
        (
            "--edits=integer",
            "--edits.integer.bits=4",
            "--edits.integer.active=late",
            "--edits.integer.active.fraction=0.5",
            "--edits.integer.active.fused=true",
        ),
        ("--edits=ternary", "--schedule=trilm", "--optim=adamw", "--optim.weight_decay=1.0"),
    ],
    ids=["ternary", "late", "trilm"],
)
def test_a_run_resumes_bit_for_bit_on_either_side_of_a_switch(
    data: Dataset, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    whole = tmp_path / "whole"
    train(whole, data, 16, *flags, *SAVING)
    for step in (4, 13):
        resumed = tmp_path / f"from{step}"
        shutil.copytree(whole, resumed)
        go_on(resumed, data, step)
        assert newest_weights(resumed) == newest_weights(whole)


def test_every_evaluation_is_of_the_quantised_model(data: Dataset, tmp_path: Path) -> None:
    """Also before training is: rounded without having been trained for it, the model is worse than it is afterwards."""
    late = (
        "--edits.ternary.active=late",
        "--edits.ternary.active.fraction=0.5",
        "--train.evaluate_every=0.25",
        "--train.spike=0.5",
    )
    summary, said = train(tmp_path / "late", data, 100, "--edits=ternary", *late)
    losses = {round(line["progress"], 2): line["loss"] for line in heldout(tmp_path / "late")}
    assert "quantised over the last 50.0% of the budget; in full precision before that" in said
    before, after = [loss for at, loss in losses.items() if at < 0.5], list(losses.values())[-1]
    assert min(before) > after + 0.5  # with a spike of 0.5 the watch would have stopped it, had it not begun anew
    assert summary["heldout_loss"] == after


def test_two_workers_train_ternary_weights_together(data: Dataset, tmp_path: Path) -> None:
    flags = (
        "--workers=2",
        "--sync=muloco",
        "--sync.every=4",
        "--transport=local",
        "--train.batch=8",
        "--train.keep=100",
    )
    words = (
        "--edits=ternary",
        "--edits.ternary.active=late",
        "--edits.ternary.active.fraction=0.5",
        "--train.checkpoint_every=0.0001",
        *flags,
    )
    summary, _ = train(tmp_path / "two", data, 40, *words)
    assert summary["workers"] == 2
    assert summary["heldout_loss"] < 5
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "two", resumed)
    go_on(resumed, data, 10)
    assert newest_weights(resumed) == newest_weights(tmp_path / "two")


def test_a_transfer_rule_and_a_float_run_to_begin_from(data: Dataset, tmp_path: Path) -> None:
    adamw = ("--optim=adamw", "--train.warmup=0")
    first, _ = train(tmp_path / "float", data, 60, *adamw)
    words = (*adamw, "--edits=ternary", f"--model.base={tmp_path / 'float'}")
    then, _ = train(tmp_path / "then", data, 60, *words)
    assert then["heldout_loss"] < first["heldout_loss"] + 1
    train(tmp_path / "mup", data, 4, "--optim=adamw", "--edits=ternary", "--transfer=mup", "--transfer.base_width=16")


def test_a_rule_that_cannot_be_followed_is_refused_before_training(data: Dataset, tmp_path: Path) -> None:
    fused = ("--edits=ternary", "--edits.ternary.active=compute_optimal")
    with pytest.raises(UsageError, match="fused = true moves the decay of schedule = wsd"):
        train(tmp_path / "cosine", data, 8, *fused, "--schedule=cosine")
    with pytest.raises(UsageError, match="must know the tokens"):
        train(tmp_path / "seconds", data, 8, *fused, "--budget=5s")


def test_edits_read_and_write_themselves() -> None:
    plain = {"budget": "1ktok", "model": {}, "edits": [{"name": "integer", "bits": 3, "keep": ["blocks.0.*"]}]}
    config = build(RunConfig, plain)
    assert tree(config)["edits"] == [{
        "name": "integer", "bits": 3, "scale": "tensor", "shards": 1, "group": 256, "activations": "none",
        "keep": ["blocks.0.*"], "active": {"name": "always"},
    }]  # fmt: skip
    assert build(RunConfig, tree(config)) == config
    assert 'name = "integer"' in to_toml(config)
    assert build(RunConfig, tomllib.loads(to_toml(config))) == config
    assert tree(build(RunConfig, {"budget": "1ktok", "model": {}}))["edits"] == []


def test_edits_are_named_and_set_by_flags_over_those_of_a_recipe() -> None:
    def names(*flags: str, recipe: Any = None) -> list[tuple[str, Any]]:
        asked = merge({"budget": "1ktok", "model": {}, **({"edits": recipe} if recipe else {})}, overrides(flags))
        return [(edit.name, edit.options.get("rank")) for edit in build(RunConfig, asked).edits]

    assert names("--edits", "drop_layers,lora", "--edits.drop_layers.count=1", "--edits.lora.rank=3") == [
        ("drop_layers", None),
        ("lora", 3),
    ]
    recipe = [{"name": "ternary"}, {"name": "lora", "rank": 4}]
    assert names("--edits.lora.rank=2", recipe=recipe) == [("ternary", None), ("lora", 2)]
    assert names("--edits=lora", recipe=recipe) == [("lora", 8)]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"edits": ["ternery"]}, "did you mean 'ternary'"),
        ({"edits": [{"name": "ternary", "scle": "row"}]}, r"unknown key .*did you mean 'scale'"),
        ({"edits": [{"name": "ternary", "activations": "int7"}]}, "activations = 'int7'"),
        ({"edits": [{"name": "ternary", "keep": 3}]}, "keep"),
        ({"edits": [{"name": "ternary", "scale": "row", "shards": 2}]}, "shards = 2 are of scale = tensor"),
        ({"edits": [{"activations": "int8"}]}, "each is a name, or a table with one"),
        ({"edits": 3}, "a list of tables is needed"),
        ({"edits": {"ternary": 3}}, "give the name first, then its options"),
        ({"edits": [{"name": "ternary", "active": {"name": "late", "fraction": 0}}]}, "fraction"),
        ({"lowbit": "ternary"}, "'lowbit' is a key no more.*--edits ternary"),
        ({"quantise": "late"}, "'quantise' is a key no more.*--edits.ternary.active late"),
    ],
)
def test_bad_sections_get_one_clear_line(section: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as found:
        build(RunConfig, {"budget": "1ktok", "model": {}, **section})
    assert "\n" not in str(found.value)


def test_a_configuration_of_0_1_0_is_read_in_the_words_of_today() -> None:
    old = {
        "budget": "1ktok",
        "model": {},
        "lowbit": {"name": "ternary", "scale": "row", "activations": "int8", "keep": []},
        "quantise": {"name": "late", "fraction": 0.5, "fused": True},
    }
    config = build(RunConfig, translated(old))
    assert [edit.name for edit in config.edits] == ["ternary"]
    assert config.edits[0].options["activations"] == "int8"
    assert config.edits[0].options["active"] == {"name": "late", "fraction": 0.5, "fused": True}
    plain = {"budget": "1ktok", "model": {}, "lowbit": {"name": "none"}, "quantise": {"name": "always"}}
    assert build(RunConfig, translated(plain)) == build(RunConfig, {"budget": "1ktok", "model": {}})


def test_weight_decay_follows_the_schedule_whatever_the_groups_were_given_meanwhile() -> None:
    model: Any = torch.nn.Sequential(torch.nn.Embedding(4, 4), torch.nn.Linear(4, 4))
    optimizer = partition(model, partial(AdamW, weight_decay=0.2)).build()
    schedules = AppliedSchedules(LinearDecay(), TriLM(), [], [(model, optimizer)])
    for progress, factor in ((0.1, 1.0), (0.7, 0.0), (0.6, 1.0)):
        with schedules.step(progress):
            assert [g["weight_decay"] for g in optimizer.param_groups] == [0.2 * factor, 0.2 * factor, 0.0]
        for group in optimizer.param_groups:
            group["weight_decay"] = 7.0  # as a state that is restored may bring it
    assert schedules(0.25) == 0.75
    plain = AppliedSchedules(LinearDecay(), LinearDecay(), [], [(model, optimizer)])
    with plain.step(0.9):
        assert {group["weight_decay"] for group in optimizer.param_groups} == {7.0}
