"""The loop in docs/slow-links.md runs as it stands: one process that nobody started as one of several is one worker."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shoestring.optim.adamw import AdamW
from shoestring.sync.rendezvous.joining import PLACE

PAGE = Path(__file__).parents[2] / "docs" / "slow-links.md"


def test_the_documented_loop_trains_under_plain_python(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLACE:
        monkeypatch.delenv(name, raising=False)
    (code,) = (each for each in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "DiLoCo(" in each)
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    batches = [torch.randn(8, 4) for _ in range(70)]

    def loss(model: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        return (model(batch) - batch.sum(1, keepdim=True)).square().mean()

    before = loss(model, batches[0]).item()
    inner = AdamW(model.parameters(), lr=0.05)
    given: dict[str, Any] = {"model": model, "inner": inner, "batches": batches, "loss": loss}
    exec(compile(code, str(PAGE), "exec"), given)
    assert given["outer"].rounds == 3, "two after 30 steps each, and one for the 10 that are left"
    assert loss(model, batches[0]).item() < before / 2
