"""The file of a packed model: what was written comes back, bit for bit, or one clear line does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn

from shoestring.errors import ShoestringError, UsageError
from shoestring.lowbit import container
from shoestring.lowbit.formats.integer import Integer
from shoestring.lowbit.formats.ternary import Ternary
from shoestring.lowbit.packed_embedding import PackedEmbedding
from shoestring.lowbit.packed_linear import PackedLinear

CONFIG = {"width": 9, "mixer": {"name": "some"}, "tied": True, "epsilon": 1e-6}


def model(bits: int = 8, layout: str = "ternary2", packed: bool = True) -> nn.Module:
    """Odd shapes, a scale of each kind, a matrix that is kept."""
    torch.manual_seed(3)
    made = nn.ModuleDict({
        "embedding": nn.Embedding(6, 9),
        "whole": nn.Linear(9, 7, bias=False),
        "shards": nn.Linear(9, 6, bias=False),
        "rows": nn.Linear(9, 5, bias=False),
        "groups": nn.Linear(160, 4, bias=False),
        "kept": nn.Linear(3, 2),
        "norm": nn.LayerNorm(9),
    })  # fmt: skip
    if not packed:
        return made
    formats = {
        "whole": Ternary(),
        "shards": Ternary(shards=3),
        "rows": Ternary(scale="row"),
        "groups": Ternary(scale="group", group=80),
    }
    for name, format in formats.items():
        made[name] = PackedLinear.of(format.quantise(made[name].weight), layout)  # type: ignore[arg-type]
    weight: Any = made["embedding"].weight
    if bits == 16:
        made["embedding"] = PackedEmbedding(weight.detach().half(), None, 6, 9, 16)
    else:
        made["embedding"] = PackedEmbedding.of(Integer(bits=bits, scale="row").quantise(weight), bits)
    return made


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "model.safetensors"
    container.write(path, model(), CONFIG)
    return path


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


@pytest.mark.parametrize("layout", ["ternary2", "ternary1.6"])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_what_is_written_comes_back(tmp_path: Path, bits: int, layout: str) -> None:
    path, written = tmp_path / "model.safetensors", model(bits, layout)
    container.write(path, written, CONFIG)
    found = container.read(path)
    assert found.config == CONFIG
    other = model(packed=False)
    container.install(path, found, other)
    assert same(other.state_dict(), written.state_dict())
    assert [type(module) for module in other.children()] == [type(module) for module in written.children()]
    first = path.read_bytes()
    container.write(path, other, found.config)
    assert path.read_bytes() == first, "the same model, another file"


def test_a_scale_that_rows_share_is_stored_once(file: Path) -> None:
    stored = load(file.read_bytes())
    shapes = {name: list(stored[f"{name}.scales"].shape) for name in ("whole", "shards", "rows", "groups")}
    assert shapes == {"whole": [1, 1], "shards": [3, 1], "rows": [5, 1], "groups": [4, 2]}


def test_the_outline_adds_up_to_the_file(file: Path) -> None:
    modules, tensors = container.outline(file)
    assert modules["embedding"].bits == 8
    assert modules["rows"].layout == "ternary2"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert header + sum(size for _, size in tensors.values()) == file.stat().st_size


def forged(file: Path, into: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> Path:
    """The file with something changed, and a checksum that agrees."""
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    described, tensors = json.loads(header["__metadata__"][container.KEY]), load(content)
    del described["sha256"]
    change(described, tensors)
    described["sha256"] = container._digest(described, tensors)
    path = into / "forged.safetensors"
    path.write_bytes(save(tensors, {container.KEY: json.dumps(described)}))
    return path


def put(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    return lambda described, tensors: tensors.update({name: value(tensors[name])})


def say(**words: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    return lambda described, tensors: described.update(words)


def restate(name: str, **words: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    return lambda described, tensors: described["modules"][name].update(words)


def both(*changes: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> Callable[..., None]:
    def change(described: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for one in changes:
            one(described, tensors)

    return change


def drop(name: str) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    return lambda described, tensors: tensors.__delitem__(name)


FORGERIES = {
    "not a packed model": say(format="something else"),
    "has version 2, this program reads version 1": say(version=2),
    "not described": say(modules={"whole": {"rows": -1, "columns": 2}}),
    "not described as": say(config=[1]),
    "whole.packed is missing": drop("whole.packed"),
    "rows.scales is missing": drop("rows.scales"),
    "uint8 \\[64\\], this is uint8 \\[63\\]": put("whole.packed", lambda packed: packed[:-1].clone()),
    "belongs to no packed module": put("norm.weight", Tensor.half),
    "uint8 \\[64\\], this is int8": put("whole.packed", lambda packed: packed.view(torch.int8)),
    "byte 0 is 255": put("whole.packed", lambda packed: packed | 255),
    "-128": put("embedding.weight", lambda weight: weight.clamp(-128, -128)),
    "rows.scales holds a number that is not finite": put("rows.scales", lambda scales: scales / 0),
    "norm.bias holds a number that is not finite": put("norm.bias", lambda bias: bias + torch.nan),
    "are not those of 7 rows": put("whole.scales", lambda scales: scales.expand(2, 1).clone()),
    "ternary2 matrix of 1000000000000 x 9": restate("whole", rows=10**12),
    "ternary2 matrix of 1000000000000 x 0": restate("whole", rows=10**12, columns=0),
    "at most 131072 columns": restate("whole", columns=10**12),
    "whole.packed is empty": both(
        restate("whole", rows=10**12, columns=0), put("whole.packed", lambda packed: packed[:0].clone())
    ),
    "embedding.weight is empty": both(
        restate("embedding", rows=10**12, columns=0, bits=16),
        put("embedding.weight", lambda weight: torch.zeros(10**12, 0, dtype=torch.float16)),
        drop("embedding.scales"),
    ),
    "norm.bias is empty": put("norm.bias", lambda bias: torch.zeros(0, 2**40)),
    "1000 groups of 9 columns": put("whole.scales", lambda scales: torch.ones(1, 1000)),
    r"no packing is called 'a\\nb'": restate("whole", layout="a\nb"),
    "is no name of a tensor": lambda described, tensors: tensors.update({"a\nb": torch.ones(2)}),
    "no packing is called": say(modules={"whole": {"rows": 7, "columns": 9, "layout": "ternary3"}}),
}


@pytest.mark.parametrize("words", FORGERIES)
def test_a_file_that_is_not_what_it_says_is_refused(file: Path, tmp_path: Path, words: str) -> None:
    with pytest.raises(ShoestringError, match=words) as refused:
        container.read(forged(file, tmp_path, FORGERIES[words]))
    assert "\n" not in str(refused.value)


MISFITS = {
    "lacks the tensor norm.bias": drop("norm.bias"),
    "the model has not, the tensor more": lambda described, tensors: tensors.update(more=torch.ones(2)),
    "norm.bias is \\(8,\\), and the model's is \\(9,\\)": put("norm.bias", lambda bias: bias[:8].clone()),
}


@pytest.mark.parametrize("words", MISFITS)
def test_a_file_of_another_model_is_refused(file: Path, tmp_path: Path, words: str) -> None:
    path = forged(file, tmp_path, MISFITS[words])
    with pytest.raises(ShoestringError, match=words):
        container.install(path, container.read(path), model(packed=False))
    found = container.read(file)
    smaller = model(packed=False)
    smaller["whole"] = nn.Linear(9, 6, bias=False)  # type: ignore[operator]
    with pytest.raises(ShoestringError, match=r"7 x 9, and the model has one of \(6, 9\)"):
        container.install(file, found, smaller)
    with pytest.raises(ShoestringError, match="none there"):
        container.install(file, found, nn.Module())


def test_files_of_other_kinds_are_refused(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(UsageError, match="no such file"):
        container.read(path)
    for content in (
        b"",
        b"\0" * 100,
        b"some text that is no model",
        save({"a": torch.ones(2)}),
        save({}, {"format": "pt"}),
    ):
        path.write_bytes(content)
        with pytest.raises(ShoestringError, match=r"not a packed model|no safetensors"):
            container.read(path)
    path.write_bytes(save({}, {container.KEY: "[" * 100000}))
    with pytest.raises(ShoestringError, match="not a packed model"):
        container.read(path)
    content = file.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(ShoestringError):
            container.read(path)


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_file_is_read_exactly_or_refused(file: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(file.read_bytes())
    whole = container.read(file)
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.one_of(st.integers(0, header - 1), st.integers(0, len(content) - 1)))
        match data.draw(st.sampled_from(["set", "delete", "insert", "digit"])):
            case "set":
                content[place] = data.draw(st.integers(0, 255))
            case "digit":
                content[place] = data.draw(st.sampled_from(b'0123456789"{}[],: '))
            case "delete":
                del content[place]
            case "insert":
                content.insert(place, data.draw(st.integers(0, 255)))
    path = tmp_path / "mutated.safetensors"
    path.write_bytes(content)
    try:
        found = container.read(path)
    except ShoestringError as error:
        assert "\n" not in str(error)
        return
    assert found.config == whole.config
    assert same(found.others, whole.others)
    assert found.modules.keys() == whole.modules.keys()
    for name, module in found.modules.items():
        assert same(module.state_dict(), whole.modules[name].state_dict())


def test_a_four_bit_table_is_checked_to_its_last_byte(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    container.write(path, model(4), CONFIG)
    for place, refused in ((8, False), (9, True), (31, True)):  # low bits: of columns 8 (the last), 9 and 31

        def change(described: dict[str, Any], tensors: dict[str, Tensor], place: int = place) -> None:
            tensors["embedding.weight"][5, place] ^= 1

        other = forged(path, tmp_path, change)
        if refused:
            with pytest.raises(ShoestringError, match=r"embedding: .* last block up is not zero"):
                container.read(other)
        else:
            container.read(other)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300), headed=st.booleans())
def test_any_bytes_are_refused(tmp_path: Path, content: bytes, headed: bool) -> None:
    path = tmp_path / "bytes.safetensors"
    path.write_bytes((len(content).to_bytes(8, "little") if headed else b"") + content)
    with pytest.raises(ShoestringError) as refused:
        container.read(path)
    assert "\n" not in str(refused.value)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
SIZES = st.integers(-1, 20) | st.sampled_from([160, 10**12, 2**63, 10**30])
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "rows": SIZES,
        "columns": SIZES,
        "bits": st.sampled_from([0, 4, 8, 16]),
        "layout": st.sampled_from(["ternary2", "ternary1.6"]),
    },
)
TENSORS = st.builds(
    lambda shape, kind: torch.ones(shape, dtype=kind),
    st.lists(st.integers(0, 9), max_size=3),
    st.sampled_from([torch.uint8, torch.int8, torch.float16, torch.float32, torch.int32]),
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_forged_description_is_fulfilled_by_its_file_or_refused(
    file: Path, tmp_path: Path, data: st.DataObject
) -> None:
    def change(described: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        names = sorted(described["modules"])
        for name in data.draw(st.lists(st.sampled_from([*names, "more"]), max_size=2)):
            entry = described["modules"].setdefault(name, {})
            entry.update(data.draw(ENTRIES))
            for key in data.draw(st.lists(st.sampled_from(["rows", "columns", "bits", "layout", "more"]), max_size=1)):
                entry[key] = data.draw(st.one_of(PLAIN, SIZES))
        for name in data.draw(st.lists(st.sampled_from([*sorted(tensors), "more.packed", "a"]), max_size=2)):
            tensors[name] = data.draw(TENSORS)
        for key in data.draw(st.lists(st.sampled_from([*described, "more"]), max_size=1)):
            described[key] = data.draw(PLAIN)

    path = forged(file, tmp_path, change)
    try:
        found = container.read(path)
    except ShoestringError as error:
        assert "\n" not in str(error)
        return
    held = [*found.others.values(), *(buffer for module in found.modules.values() for buffer in module.buffers())]
    assert sum(tensor.nbytes for tensor in held) <= 2 * path.stat().st_size


def test_what_cannot_be_stored_leaves_the_old_file(file: Path) -> None:
    before, bad = file.read_bytes(), model()
    bad["norm"].weight.data[0] = torch.inf  # type: ignore[index]
    with pytest.raises(ShoestringError, match=r"norm.weight holds a number that is not finite"):
        container.write(file, bad, CONFIG)
    with pytest.raises(ShoestringError, match="stored in float32"):
        container.write(file, model().double(), CONFIG)
    bad["norm"] = PackedLinear.of(Ternary().quantise(torch.zeros(0, 9)), "ternary2")  # type: ignore[operator]
    with pytest.raises(ShoestringError, match=r"norm.packed has the shape \[0\]: no tensor of a packed model is empty"):
        container.write(file, bad, CONFIG)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]
