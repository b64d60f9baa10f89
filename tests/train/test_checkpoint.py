from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.errors import ShoestringError, UsageError
from shoestring.train.checkpoint import Snapshot, list_checkpoints, load, save


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
