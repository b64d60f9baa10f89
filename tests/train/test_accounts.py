"""What a run's ledger says of each account is what torch counts, on every way through the trainer."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from shoestring.budget.ledger import Totals, read_ledger
from shoestring.budget.machine import probe
from tests.flop_counting import CPU_ATTENTION
from tests.train.command import TINY
from tests.train.command import shoestring_here as shoestring

PLAIN = (
    "--execution.precision=float32",
    "--execution.compile=none",
    "--execution.attention=flash",
    "--execution.loss=plain",
    "--optim.name=adamw",
    "--train.batch=4",
    "--train.sample_tokens=6",
    "--train.sample=line 1",
)
WAYS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "micro-batches of packed documents": ("--train.micro_batch=2", "--data.packing=isolated"),
    "evaluations on the way, rows padded": ("--train.evaluate_every=0.3", "--train.heldout_tokens=96"),
    "ternary": ("--edits=ternary",),
    "layers dropped by a look at text": ("--model.layers=3", "--edits=drop_layers", "--edits.drop_layers.count=1",
                                        "--edits.drop_layers.by=influence"),
    "adapters": ("--edits=lora", "--edits.lora.rank=2"),
    "second derivatives": ("--optim.name=sophia", "--optim.estimator=hutchinson", "--optim.interval=2"),
    "hidden tokens filled in": ("--objective=masked_diffusion", "--model.causal=false", "--model.hides=true"),
    "labels drawn": ("--optim.name=sophia", "--optim.estimator=gnb", "--optim.interval=2"),
}  # fmt: skip


def totals(run: Path) -> Totals:
    found = Totals()
    for line in read_ledger(run / "ledger.jsonl"):
        found = found.plus(line)
    return found


@pytest.mark.parametrize("words", WAYS.values(), ids=WAYS)
def test_the_accounts_add_up_to_what_torch_counts(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    run, machine = tmp_path / "run", probe()
    # a look at the machine multiplies matrices too, and is on no run's account
    monkeypatch.setattr("shoestring.launch.alone.probe", lambda: machine)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        status, _, errors = shoestring(
            "train", "--budget=700tok", f"--data.corpus={corpus}", *TINY, *PLAIN, *words, "--out", run
        )
    assert status == 0, errors
    found = totals(run)
    spent: dict[str, Any] = {name: charge.flops for name, charge in found.accounts.items()}
    assert sum(spent.values()) + found.flops == pytest.approx(counter.get_total_flops(), rel=0.002)
    assert {"evaluation", "sample"} <= spent.keys()
    assert ("calibration" in spent) == ("by=influence" in " ".join(words))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["accounts"]["evaluation"]["flops"] == spent["evaluation"]
