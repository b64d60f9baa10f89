"""What a run's memory has no room for is not tried."""

import pytest

from shoestring.config import build
from shoestring.train import starting
from shoestring.train.config import RunConfig

MODEL = {"layers": 1, "width": 16, "heads": 2, "vocabulary": 50_000, "context": 512}


@pytest.mark.parametrize(
    ("memory", "batch", "compiled", "loss"),
    [
        (None, 8, "auto", "auto"),
        ("64GB", 8, "auto", "auto"),
        ("4GB", 8, "auto", "fused"),  # 4096 tokens of 50,000 logits of 14 bytes
        ("4GB", 1, "auto", "auto"),
        ("2GB", 1, "none", "fused"),
    ],
)
def test_a_memory_leaves_out_what_it_has_no_room_for(
    memory: str | None, batch: int, compiled: str, loss: str, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(starting, "peak_memory", lambda: 10**9)
    asked = {"budget": "1ktok", "model": MODEL, "train": {"batch": batch}, "memory": memory}
    found = starting._within_memory(build(RunConfig, {key: value for key, value in asked.items() if value}))
    assert (found.execution.compile, found.execution.loss) == (compiled, loss)
    assert len(said) == (compiled == "none") + (loss == "fused")


def test_what_is_asked_for_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "peak_memory", lambda: 10**9)
    asked = {"budget": "1ktok", "model": MODEL, "memory": "1.5GB", "execution": {"compile": "blocks", "loss": "plain"}}
    found = starting._within_memory(build(RunConfig, asked))
    assert (found.execution.compile, found.execution.loss) == ("blocks", "plain")
