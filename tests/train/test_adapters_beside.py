"""Adapters of runs beside their base: each row is as the run that trained its adapter."""

from pathlib import Path

import pytest
import torch

from shoestring.base import open_model
from shoestring.contract.batch import Inputs
from shoestring.contract.model import LanguageModel
from shoestring.errors import UsageError
from shoestring.train.adapters_beside import several_adapters
from tests.train.command import TINY
from tests.train.command import shoestring_here as shoestring

EDITS = {
    "lora": (),
    "dora": ("--edits.dora.rank=2",),
    "road": ("--edits.road.group=8",),
    "adalora": ("--edits.adalora.rank=2",),
    "compacter": ("--edits.compacter.bottleneck=8",),
    "key_value_bottleneck": ("--edits.key_value_bottleneck.keys=8",),
}


@pytest.fixture(scope="module")
def base(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("base") / "run"
    status, _, errors = shoestring("train", "--budget=1ktok", f"--data.corpus={corpus}", *TINY, "--out", run)
    assert status == 0, errors
    return run


def tune(base: Path, corpus: Path, out: Path, *words: str) -> Path:
    plain = [word for word in TINY if not word.startswith(("--model.", "--data.tokenizer"))]
    on = ("train", "--budget=1ktok", f"--data.corpus={corpus}", f"--model.base={base}", *plain)
    status, _, errors = shoestring(*on, "--optim.lr=0.02", "--fallback.lr=0.02", *words, "--out", out)
    assert status == 0, errors
    return out


@torch.no_grad()
def logits(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    return model.read(Inputs(tokens)).logits()


def test_runs_stand_beside_one_another(base: Path, corpus: Path, tmp_path: Path) -> None:
    runs = {name: tune(base, corpus, tmp_path / name, f"--edits={name}", *options) for name, options in EDITS.items()}
    newest = sorted((runs["lora"] / "checkpoints").iterdir())[-1]
    opened = open_model(str(base))
    several = several_adapters(opened, {**runs, "newest": newest})
    tokens = torch.randint(256, (len(runs) + 1, 16), generator=torch.Generator().manual_seed(1))
    with several.rows([*runs, None]):
        together = logits(several.model, tokens)
    plain = logits(several.model, tokens)
    for row, run in enumerate(runs.values()):
        alone = logits(open_model(str(run)).model, tokens[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(plain[row], together[row], atol=1e-3), row
    torch.testing.assert_close(together[-1], plain[-1])
    with several.rows(["newest"]):
        found = logits(several.model, tokens[:1])
    torch.testing.assert_close(found, together[:1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(open_model(str(newest)).model, tokens[:1]), found, atol=1e-4, rtol=1e-4)
    # another model than the runs were tuned on
    full = tune(base, corpus, tmp_path / "full")
    with pytest.raises(UsageError, match="is another model or in another form"):
        several_adapters(open_model(str(full)), {"poet": runs["road"]})
    with pytest.raises(UsageError, match="this run trained no adapters"):
        several_adapters(opened, {"poet": full})
    two = tune(base, corpus, tmp_path / "two", "--edits=ternary,lora")
    with pytest.raises(UsageError, match="are of a model with ternary"):
        several_adapters(opened, {"poet": two})
