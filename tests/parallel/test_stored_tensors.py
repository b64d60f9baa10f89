"""Parts of tensors, written and read: any division gives back any part, and an index that is not true of its files is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from shoestring.errors import ShoestringError
from shoestring.model.safetensors_writer import TYPES, write_all
from shoestring.parallel.region import Region, runs_of, shape_of
from shoestring.parallel.stored_tensors import StoredPart, StoredTensor, StoredTensors, part_of, pieces_of


@st.composite
def divided(draw: st.DrawFn) -> tuple[torch.Tensor, list[Region], list[Region]]:
    """(a tensor, a division of its rows and columns in any order, some other parts of it)."""
    rows, columns = draw(st.integers(1, 7)), draw(st.integers(1, 6))

    def cut(size: int) -> list[tuple[tuple[int, int], ...]]:
        order = torch.tensor(draw(st.permutations(range(size))))
        return [runs_of(part) for part in order.chunk(draw(st.integers(1, 3)))]

    def regions() -> list[Region]:
        across = cut(columns)
        return [(down, along) for down in cut(rows) for along in across]

    return torch.arange(rows * columns, dtype=torch.float32).view(rows, columns), regions(), regions()


def plainly(whole: torch.Tensor, region: Region) -> torch.Tensor:
    """The slow reference: index by index."""
    rows, columns = ([i for first, end in runs for i in range(first, end)] for runs in region)
    return torch.stack([torch.stack([whole[r, c] for c in columns]) for r in rows])


@given(case=divided())
def test_any_part_is_read_of_any_division(
    case: tuple[torch.Tensor, list[Region], list[Region]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole, there, wanted = case
    folder = tmp_path_factory.mktemp("pieces")
    pieces = []
    for number, region in enumerate(there):
        part = part_of({"w": whole}, "w", region)
        assert torch.equal(part, plainly(whole, region))
        write_all(folder / f"{number}.safetensors", {"w": part})
        pieces.append(StoredPart(folder / f"{number}.safetensors", "w", region))
    stored = StoredTensors({"w": StoredTensor(whole.dtype, tuple(whole.shape), tuple(pieces))})
    assert torch.equal(stored["w"], whole)
    for region in wanted:
        found = stored.part("w", region)
        assert found.shape == shape_of(region)
        assert torch.equal(found, plainly(whole, region))


def test_the_writer_writes_what_safetensors_writes(tmp_path: Path) -> None:
    tensors = {"a": torch.tensor(2.0), "empty": torch.zeros(0, 3), 'ä "quoted"': torch.arange(12.0).view(3, 4).T}
    tensors |= {f"of {name}": torch.zeros(3, dtype=dtype) for dtype, name in TYPES.items()}
    for metadata in (None, {"format": "pt"}):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs", metadata)
        write_all(tmp_path / "ours", tensors, metadata)
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


INDEX: dict[str, Any] = {
    "w": {
        "dtype": "F32",
        "shape": [4, 2],
        "in": [{"file": "0", "at": [[[0, 2]], [[0, 2]]]}, {"file": "1", "at": [[[2, 4]], [[0, 2]]]}],
    },
    "step": {"dtype": "F32", "shape": [], "in": [{"file": "0", "at": []}]},
}


def forged(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(INDEX))
    change(made)
    return made


@pytest.mark.parametrize(
    "change",
    [
        lambda i: i["w"].update(dtype="F16"),
        lambda i: i["w"].update(shape=[5, 2]),
        lambda i: i["w"].update(shape=[4]),
        lambda i: i["w"].update(shape=[4, -2]),
        lambda i: i["w"]["in"].pop(),
        lambda i: i["w"]["in"].append(i["w"]["in"][0]),
        lambda i: i["w"]["in"][0].update(file="../0"),
        lambda i: i["w"]["in"][0].update(at=[[[0, 3]], [[0, 2]]]),
        lambda i: i["w"]["in"][0].update(at=[[[3, 5]], [[0, 2]]]),
        lambda i: i["w"]["in"][0].update(at=[[[0, True]], [[0, 2]]]),
        lambda i: i["w"]["in"][0].update(at="ab"),
        lambda i: i.update(w=3),
        lambda i: i.update(other=i["w"]),
        lambda i: i["step"].update(at=[[[0, 1]]], shape=[1]),
    ],
)
def test_an_index_that_is_not_true_of_its_files_is_refused(
    change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    whole = torch.arange(8.0).view(4, 2)
    write_all(tmp_path / "0", {"w": whole[:2], "step": torch.tensor(3.0)})
    write_all(tmp_path / "1", {"w": whole[2:]})
    files = frozenset({"0", "1"})
    good = StoredTensors(pieces_of(INDEX, tmp_path / "manifest.json", files))
    assert torch.equal(good["w"], whole)
    assert float(good["step"]) == 3.0
    assert torch.equal(good.part("w", (((1, 3),), ((1, 2),))), whole[1:3, 1:])
    with pytest.raises(ShoestringError, match=r"manifest\.json is damaged"):
        pieces_of(forged(change), tmp_path / "manifest.json", files)


def test_parts_that_overlap_and_leave_a_hole_are_refused_when_read(tmp_path: Path) -> None:
    write_all(tmp_path / "0", {"w": torch.zeros(2)})
    piece = StoredPart(tmp_path / "0", "w", (((0, 2),),))
    stored = StoredTensors({"w": StoredTensor(torch.float32, (4,), (piece, piece))})
    with pytest.raises(ShoestringError, match="2 of 3 numbers"):
        stored.part("w", (((1, 4),),))
