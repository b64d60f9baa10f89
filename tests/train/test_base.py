"""Runs that train on a model that exists already."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shoestring.base import open_model
from tests.train.command import TINY
from tests.train.command import shoestring_here as shoestring

QUICK = ("--train.batch=4", "--train.sample_tokens=0", "--model.context=32", "--execution.precision=float32")
PLAIN = ("--execution.compile=none", "--execution.attention=flash", "--execution.loss=plain")


def newest_weights(run: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run's newest checkpoint."""
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    found: dict[str, torch.Tensor] = load_file(newest / "model.safetensors")
    return found


@pytest.fixture(scope="module")
def base(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("base") / "run"
    status, _, errors = shoestring("train", "--budget=8ktok", f"--data.corpus={corpus}", *TINY, "--out", run)
    assert status == 0, errors
    return run


def tune(base: Path, corpus: Path, out: Path, *words: str, budget: str = "2ktok") -> str:
    on = (f"--budget={budget}", f"--data.corpus={corpus}", f"--model.base={base}", *QUICK, *PLAIN)
    status, shown, errors = shoestring("train", *on, *words, "--out", out)
    assert status == 0, errors
    return " ".join(shown.split())


def test_a_run_on_a_base_starts_where_the_base_ended(base: Path, corpus: Path, tmp_path: Path) -> None:
    before = json.loads((base / "summary.json").read_text())["heldout_loss"]
    tune(base, corpus, tmp_path / "run", "--optim.lr=1e-9", "--fallback.lr=1e-9")
    after = json.loads((tmp_path / "run" / "summary.json").read_text())["heldout_loss"]
    assert after == pytest.approx(before, abs=0.2)  # of the same text, in other windows
    assert newest_weights(tmp_path / "run").keys() == newest_weights(base).keys()


def test_checkpoints_of_adapters_hold_the_adapters_and_rebuild_the_model(
    base: Path, corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    said = tune(base, corpus, run, "--edits=lora", "--edits.lora.rank=2")
    assert "lora: adapters of rank 2" in said
    kept = newest_weights(run)
    assert kept
    assert all(name.endswith((".up", ".down")) for name in kept)
    opened = open_model(str(run))
    assert opened.about.values["edits"] == ["lora"]
    theirs = load_file(run / "transformers" / "model.safetensors")
    folded = opened.model
    tokens = torch.arange(20).view(1, 20) % 50
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(run / "transformers")
    with torch.no_grad():
        torch.testing.assert_close(stock(tokens).logits, folded(tokens), atol=1e-4, rtol=1e-4)  # type: ignore[operator]
    assert not any(name.endswith((".up", ".down")) or ".base." in name for name in theirs)


@pytest.mark.parametrize(
    "edits",
    [
        (),
        ("--edits=lora",),
        ("--edits=ternary,lora", "--edits.lora.rank=3"),
        ("--edits=adalora", "--edits.adalora.rank=2"),
        ("--edits=compacter",),
        ("--edits=key_value_bottleneck", "--edits.key_value_bottleneck.keys=16"),
        ("--edits=cast", "--objective=distillation"),
        ("--edits=sparse_schedule", "--objective=sortednet"),
        ("--edits=low_rank_clone", "--objective=activation_clone"),
        ("--edits=compactifai", "--objective=minillm", "--objective.prompt=8", "--objective.written=4"),
        ("--edits=cats,progressive_gradient_flow", "--objective=attention_relations"),
    ],
    ids=lambda edits: edits[0].partition("=")[2] if edits else "full",
)
def test_a_run_on_a_base_goes_on_bit_for_bit(base: Path, corpus: Path, tmp_path: Path, edits: tuple[str, ...]) -> None:
    tune(base, corpus, tmp_path / "whole", *edits, "--train.checkpoint_every=1e-3", "--train.keep=99")
    whole = newest_weights(tmp_path / "whole")
    steps = sorted(int(path.name[5:]) for path in (tmp_path / "whole" / "checkpoints").glob("step-*"))
    status, _, errors = shoestring("train", "--resume", tmp_path / "whole", "--from-step", str(steps[len(steps) // 2]))
    assert status == 0, errors
    again = newest_weights(tmp_path / "whole")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_another_base_than_the_run_began_with_is_refused(base: Path, corpus: Path, tmp_path: Path) -> None:
    tune(base, corpus, tmp_path / "first", "--edits=lora")
    second = tmp_path / "second"
    tune(base, corpus, second, "--optim.lr=0.01")
    status, _, errors = shoestring(
        "train", "--resume", tmp_path / "first", f"--model.base={second}", "--from-step", "1"
    )
    assert status != 0
    assert "not the model that this run began with" in errors or "no checkpoint of step" in errors


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model.base=nowhere",), "no model that can be opened"),
        (("--model.base=BASE", "--model.width=64"), "model.width = 64 is not what"),
        (("--model.base=BASE", "--model.context=5000"), "tokens at most"),
        (("--model.base=BASE", "--data.tokenizer=bpe"), "base's own tokenizer"),
        (
            ("--model.base=BASE", "--model.context=5000", "--edits=longgen", "--edits.longgen.context=4000"),
            "reads 4000 tokens at most",
        ),
        (("--model.base=BASE", "--transfer=mup"), "leave transfer out"),
    ],
)
def test_what_a_base_does_not_allow_is_refused(
    base: Path, corpus: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    given = [word.replace("BASE", str(base)) for word in words]
    status, _, errors = shoestring(
        "train", "--budget=2ktok", f"--data.corpus={corpus}", *given, "--out", tmp_path / "run"
    )
    assert status == 2
    assert said in errors
    assert errors.count("\n") == 1


def test_a_pruned_base_learns_from_what_it_was(base: Path, corpus: Path, tmp_path: Path) -> None:
    how = ("--edits=minitron", "--edits.minitron.hidden=0.5", "--objective=distillation")
    kept = (f"--objective.cache={tmp_path / 'said'}", "--objective.top=8")
    said = tune(base, corpus, tmp_path / "run", *how, *kept)
    assert "Minitron: hidden" in said
    opened = open_model(str(tmp_path / "run"))
    whole = open_model(str(base))
    assert sum(p.numel() for p in opened.model.parameters()) < sum(p.numel() for p in whole.model.parameters())  # type: ignore[attr-defined]
    accounts = json.loads((tmp_path / "run" / "summary.json").read_text())["accounts"]
    assert accounts["teacher"]["flops"] > 0
    assert accounts["calibration"]["flops"] > 0
    assert list((tmp_path / "said").glob("*.rows"))
    for more, said in (
        ((), "learns from another model: name one with --objective.teacher"),
        ((f"--objective.teacher={base}", "--data.tokenizer=bpe"), "has another tokenizer than this run"),
    ):
        words = ("--budget=2ktok", f"--data.corpus={corpus}", "--objective=distillation", *TINY, *more)
        status, _, errors = shoestring("train", *words, "--out", tmp_path / "no")
        assert status == 2
        assert said in errors
