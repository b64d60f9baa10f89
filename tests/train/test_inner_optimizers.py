"""One table for every registered optimiser under an outer loop: it trains and resumes bit for bit, or is refused by name."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import cache_folder
from shoestring.config import build
from shoestring.data.dataset import Dataset
from shoestring.data.prepare import prepare
from shoestring.method import Card, methods
from shoestring.optim.adamw import AdamW
from shoestring.optim.muon_hypersphere import MuonHypersphere
from shoestring.optim.partition import partition
from shoestring.sync.diloco import DiLoCo
from shoestring.train.config import RunConfig
from shoestring.train.elastic.inner import InnerState
from shoestring.train.run_folder import RunFolder
from shoestring.train.session import Session
from tests.train.command import newest_weights, shoestring_here

RECIPE: dict[str, Any] = {
    "budget": "2ktok",
    "workers": 2,
    "transport": "local",
    "sync": {"name": "muloco", "every": 3, "codec": "4bit"},
    "data": {"tokenizer": "bytes", "heldout": 0.1},
    "model": {"layers": 1, "width": 32, "heads": 2, "context": 32},
    "train": {
        "batch": 8,
        "warmup": 0.0,
        "evaluate_every": 0.5,
        "heldout_tokens": 512,
        "sample_tokens": 0,
        "checkpoint_every": 1e-4,
        "keep": 100,
    },
    "execution": {"device": "cpu", "precision": "float32", "compile": "none", "attention": "flash", "loss": "plain"},
}
REFUSED = {"schedule_free"}
CARDS = [card for card in methods("optim") if card.name not in REFUSED]


@pytest.fixture(scope="module")
def dataset(corpus: Path) -> Dataset:
    data = build(RunConfig, RECIPE | {"data": {**RECIPE["data"], "corpus": str(corpus)}}).data
    return prepare(data, cache_folder())


def session(folder: Path, dataset: Dataset, name: str) -> Session:
    """A run of two workers in this process, in lock-step; without what the command does before and after it."""
    config = build(RunConfig, RECIPE | {"optim": {"name": name}})
    config = replace(config, model=replace(config.model, vocabulary=dataset.tokenizer.vocabulary))
    run = RunFolder(folder)
    return Session(config, run, Ledger(run.ledger), dataset, lambda line: None)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_trains_and_resumes_bit_for_bit(dataset: Dataset, tmp_path: Path, card: Card) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    session(whole, dataset, card.name).run()
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    first = next(line["loss"] for line in lines if line["kind"] == "train")
    halfway, last = (line["loss"] for line in lines if line["kind"] == "heldout")
    assert math.inf > first > halfway > last

    shutil.copytree(whole, resumed)
    again = session(resumed, dataset, card.name)
    again.restore(4)  # between two exchanges
    again.run()
    assert newest_weights(resumed) == newest_weights(whole)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_is_refused_by_name(corpus: Path, tmp_path: Path, name: str) -> None:
    flags = ["--workers=2", "--transport=local", "--sync=muloco", f"--optim={name}", f"--data.corpus={corpus}"]
    status, _, errors = shoestring_here("train", "--out", tmp_path / "run", *flags)
    assert status == 2
    assert f"optim = {name} keeps weights of its own in its state, which sync = muloco would leave behind" in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_worker_whose_moments_are_forgotten_keeps_the_spheres_of_the_first_weights() -> None:
    """Also where its inner optimiser begins anew, as its work was not finite: its weights are merged ones by then."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 3))
    layer: Any = model[0]
    first = layer.weight.norm().item()
    optimizer = partition(model, MuonHypersphere, AdamW).build()
    DiLoCo(model, optimizer)
    state = InnerState(optimizer)
    for _ in range(2):
        with torch.no_grad():
            layer.weight.mul_(1.5)
        state.reset()
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape)
        optimizer.step()
        assert layer.weight.norm().item() == pytest.approx(first)
