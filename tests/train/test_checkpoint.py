import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.errors import ShoestringError, UsageError
from shoestring.train.checkpoint import Snapshot, list_checkpoints, load, remove, save


def _snapshot(number: int) -> Snapshot:
    weights = {"a": torch.full((3, 5), float(number)), "b": torch.arange(7, dtype=torch.bfloat16)}
    return Snapshot(weights, {"a.momentum": torch.ones(3, 5)}, {"step": number, "value": 0.1 + 0.2})


def test_what_is_saved_is_loaded_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 5, 12):
        save(tmp_path, step, _snapshot(step), keep=2)
    assert list_checkpoints(tmp_path) == [5, 12]
    step, found = load(tmp_path)
    assert (step, found.state) == (12, {"step": 12, "value": 0.1 + 0.2})
    torch.testing.assert_close(found.model, _snapshot(12).model, rtol=0, atol=0)
    assert load(tmp_path, 5)[1].state["step"] == 5
    with pytest.raises(UsageError, match="no checkpoint of step 1"):
        load(tmp_path, 1)
    with pytest.raises(UsageError, match="holds no checkpoint"):
        load(tmp_path / "absent")


def test_torchs_random_state_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(5)
    save(tmp_path, 1, _snapshot(1), keep=1)
    expected = torch.rand(3)
    torch.manual_seed(6)
    load(tmp_path)
    assert torch.equal(torch.rand(3), expected)


@settings(deadline=None, max_examples=40)
@given(place=st.floats(0, 1, exclude_max=True), cut=st.booleans(), which=st.integers(0, 4), bit=st.integers(0, 7))
def test_any_cut_or_flipped_bit_is_caught_by_name(
    tmp_path_factory: pytest.TempPathFactory, place: float, cut: bool, which: int, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    save(folder, 3, _snapshot(3), keep=2)
    save(folder, 9, _snapshot(9), keep=2)
    path = sorted((folder / "step-00000009").iterdir())[which]
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    if cut:
        del content[at:]
    else:
        content[at] ^= 1 << bit
    path.write_bytes(content)
    try:
        _, found = load(folder)
    except ShoestringError as error:
        assert "step-00000009" in str(error)
        assert "\n" not in str(error)
    else:  # a flipped bit in the manifest that changes no meaning, as in a digest's letter case or the step's digits
        assert path.name == "manifest.json"
        torch.testing.assert_close(found.model, _snapshot(9).model, rtol=0, atol=0)
    assert load(folder, 3)[0] == 3


def _manifest(folder: Path, number: int, **changed: object) -> None:
    path = folder / f"step-{number:08d}" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def _without(digests: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in digests.items() if key != name}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: {"sha256": []}, "'sha256' is not a checksum for each file"),
        (lambda d: {"sha256": {**d, "state.json": 3}}, "'sha256' is not a checksum for each file"),
        (lambda d: {"sha256": _without(d, "model.safetensors")}, "does not vouch for the file model.safetensors"),
        (lambda d: {"sha256": {**d, "../../x": "0"}}, "names, and no checkpoint has, the file ../../x"),
        (lambda d: {"step": 3}, "is of step 3, and its folder's name says 9"),
        (lambda d: {"step": None}, "is of step None"),
        (lambda d: {"version": 3}, "has version 3"),
        (lambda d: {"format": "another"}, "does not say 'shoestring-checkpoint'"),
    ],
)
def test_a_manifest_that_does_not_vouch_for_each_file_is_refused(
    tmp_path: Path, change: Callable[[dict[str, str]], dict[str, object]], complaint: str
) -> None:
    save(tmp_path, 3, _snapshot(3), keep=2)
    save(tmp_path, 9, _snapshot(9), keep=2)
    newest = tmp_path / "step-00000009"
    digests = json.loads((newest / "manifest.json").read_text())["sha256"]
    _manifest(tmp_path, 9, **change(digests))
    (newest / "model.safetensors").write_bytes((tmp_path / "step-00000003" / "model.safetensors").read_bytes())
    with pytest.raises(ShoestringError, match=complaint) as caught:
        load(tmp_path)
    assert "--from-step 3" in str(caught.value)


def test_a_file_too_many_is_refused_and_strays_beside_checkpoints_are_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 9, _snapshot(9), keep=2)
    for stray in ("step-00000009.bak", "step-12", "step-", "notes"):
        (tmp_path / stray).mkdir()
    (tmp_path / "step-00000011").write_text("a file")
    assert list_checkpoints(tmp_path) == [9]
    assert load(tmp_path)[0] == 9
    (tmp_path / "step-00000009" / ".DS_Store").write_text("")
    assert load(tmp_path)[0] == 9
    (tmp_path / "step-00000009" / "more.safetensors").write_text("")
    with pytest.raises(ShoestringError, match=r"more\.safetensors is no part of a checkpoint"):
        load(tmp_path)


def test_what_a_kill_left_of_a_removed_checkpoint_does_not_stop_the_next_removal(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step, _snapshot(step), keep=2)
    left = tmp_path / f".step-00000001.{os.getpid()}.tmp"
    left.mkdir()
    (left / "half").write_text("")
    remove(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
