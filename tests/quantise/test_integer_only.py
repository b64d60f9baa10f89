"""Models of integers alone: near the model in floating point, the same bits however they read, and no float within."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.quantise.footprint import live_bytes
from shoestring.quantise.integer_only import arithmetic
from shoestring.quantise.integer_only.convert import integer_model
from shoestring.quantise.integer_only.footprint import integer_footprint
from tests.quantise import making
from tests.quantise.integer_models import LENGTH, SHAPES, ids_of, integers, made


def chain(rows: int, seed: int) -> Tensor:
    """[rows, LENGTH + 1] ids: each follows from the one before, but for one in eight."""
    drawn = torch.Generator().manual_seed(seed)
    ids = torch.randint(making.VOCABULARY, (rows, LENGTH + 1), generator=drawn)
    for place in range(1, LENGTH + 1):
        sure = torch.rand(rows, generator=drawn) < 7 / 8
        ids[:, place] = torch.where(sure, (7 * ids[:, place - 1] + place % 2) % making.VOCABULARY, ids[:, place])
    return ids


def trained(**more: Any) -> Transformer:
    """A model that has learnt most of `chain`."""
    sizes: dict[str, Any] = {"layers": 2, "width": 32, "heads": 4, "key_value_heads": 2, "context": LENGTH, **more}
    torch.manual_seed(1)
    model = Transformer(ModelConfig(vocabulary=making.VOCABULARY, **sizes))
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(120):
        ids = chain(32, step)
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval()


def calibration() -> tuple[Batch, ...]:
    ids = chain(32, 1000)
    return tuple(Batch(Inputs(ids[at : at + 8, :-1]), ids[at : at + 8, 1:]) for at in range(0, 32, 8))


@pytest.mark.parametrize("name", ["plain", "embbert"])
def test_a_trained_model_loses_little(name: str) -> None:
    model = trained(**SHAPES[name])
    before = copy.deepcopy(model.state_dict())
    found, spent = integer_model(model, calibration())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert (spent.read, spent.calls) == (32 * LENGTH, 4)
    assert spent.flops == 4 * model.cost(Shape(8, LENGTH, outputs=0)).flops
    ids = chain(64, 2000)
    with torch.no_grad():
        plain, whole = (one.read(Inputs(ids[:, :-1])).logits() for one in (model, found))
    losses = [float(F.cross_entropy(one.flatten(0, 1), ids[:, 1:].flatten())) for one in (plain, whole)]
    assert losses[0] < 1.6  # of 3.9 where nothing was learnt: its choices mean something
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert float((plain.argmax(-1) == whole.argmax(-1)).double().mean()) > 0.97


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_near_those_in_floating_point(name: str) -> None:
    model, found = made(name)
    ids = ids_of(4)
    with torch.no_grad():
        plain = model.read(Inputs(ids)).logits()
    reading = found.read(Inputs(ids))
    assert reading.hidden.dtype == torch.int8
    whole = reading.logits()
    assert whole.dtype == torch.float32
    assert torch.equal(whole, integers(found, reading.hidden).float() * found.logits_scale)
    assert float((whole - plain).norm() / plain.norm()) < 0.09
    assert found.about == model.about
    for shape in (Shape(2, 5, 3), Shape(1, 1, 7, outputs=0)):
        assert found.cost(shape).flops == model.cost(shape).flops
    assert reading.cost.flops == model.cost(Shape(4, LENGTH, outputs=0)).flops


@pytest.mark.parametrize("name", SHAPES)
def test_it_is_the_same_bits_however_the_text_is_cut(name: str) -> None:
    _, found = made(name)
    ids = ids_of(3)
    whole = found.read(Inputs(ids)).hidden
    for sizes in ([1] * LENGTH, [5, 1, 11, 7]):
        cache = found.new_cache(3, LENGTH)
        parts = [found.read(Inputs(tokens), cache).hidden for tokens in ids.split(sizes, 1)]
        assert torch.equal(torch.cat(parts, 1), whole)
        assert cache.nbytes == found.cost(Shape(3, 0, LENGTH)).held - found.weight_bytes
        assert torch.equal(integers(found, parts[-1][:, -1]), integers(found, whole[:, -1]))
    alone = torch.cat([found.read(Inputs(row[None])).hidden for row in ids])
    assert torch.equal(alone, whole)


@pytest.mark.parametrize("name", ["plain", "embbert"])
def test_rows_of_different_lengths_are_as_each_alone(name: str) -> None:
    _, found = made(name)
    ids, first, then = ids_of(3), torch.tensor([9, 4, 1]), torch.tensor([2, 6, 0])
    cache = found.new_cache(3, LENGTH)
    found.read(Inputs(ids[:, :9], lengths=first), cache)
    more = torch.stack([ids[row, start : start + 6] for row, start in enumerate(first.tolist())])
    reading = found.read(Inputs(more, lengths=then), cache)
    assert cache.lengths == [11, 10, 1]
    for row, (start, new) in enumerate(zip(first.tolist(), then.tolist(), strict=True)):
        alone = found.read(Inputs(ids[row : row + 1, : start + new])).hidden
        assert torch.equal(reading.hidden[row, :new], alone[0, start:])
    again = cache.take(torch.tensor([1, 0]))
    again.crop([8, 8])
    next_one = found.read(Inputs(ids[:2, 20:21]), again).hidden
    for row, source in enumerate((1, 0)):
        alone = found.read(Inputs(torch.cat((ids[source, :8], ids[row, 20:21]))[None])).hidden
        assert torch.equal(next_one[row, 0], alone[0, -1])


class Kinds(TorchDispatchMode):
    """Collects the types of all tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[torch.dtype, str] = {}

    def __torch_dispatch__(
        self, function: Any, kinds: Any, given: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        found = function(*given, **(named or {}))
        for one in found if isinstance(found, list | tuple) else (found,):
            if isinstance(one, Tensor):
                self.seen.setdefault(one.dtype, str(function))
        return found


WHOLE = {torch.bool, torch.int8, torch.int16, torch.int32, torch.int64}


@pytest.mark.parametrize("name", SHAPES)
def test_no_float_is_made_between_ids_and_integer_logits(name: str) -> None:
    _, found = made(name)
    assert {one.dtype for one in found.state_dict().values()} <= WHOLE
    ids, cache = ids_of(2), found.new_cache(2, LENGTH)
    with Kinds() as watched:
        found.read(Inputs(ids[:, :9]), cache)
        hidden = found.read(Inputs(ids[:, 9:10]), cache).hidden
        logits = integers(found, hidden)
    assert logits.dtype == torch.int32
    assert watched.seen.keys() <= WHOLE, watched.seen
    with Kinds() as watched:
        found.integer_head.logits(hidden)
    assert torch.float32 in watched.seen  # there it is seen


@pytest.mark.parametrize("name", ["plain", "embbert"])
def test_memory_in_use_is_counted_as_it_is(name: str, tmp_path: Path) -> None:
    _, found = made(name)
    arithmetic._fast_products.cache_clear()
    used = integer_footprint(found)
    cache, last = found.new_cache(1, LENGTH), Inputs(ids_of(1)[:, :1])
    found.read(Inputs(ids_of(1)[:, 1:]), cache)
    with live_bytes() as most:
        integers(found, found.read(last, cache).hidden[:, -1])
    assert used.activations == most[0]  # whatever was read
    assert used.weights == sum(one.nbytes for one in found.state_dict().values()) == found.weight_bytes
    numbers = sum(one.numel() for one in making.native(**SHAPES[name]).parameters())
    assert numbers < used.weights < 2 * numbers
    assert used.cache == 2 * LENGTH * 32  # two layers, 32 numbers a token: half a key and a value, or the token
    # a row of the widest product in 64 bits is the least
    assert 8 * 50 <= used.activations < 8192
    assert used.bits == 8
    if name == "plain":  # what attention holds of a text grows with it
        long = integer_model(making.native(context=16 * LENGTH), making.text())[0]
        assert integer_footprint(long).activations > used.activations + 8 * 15 * LENGTH


def test_what_it_cannot_read_is_said() -> None:
    _, found = made("embbert")
    ids = ids_of(1)
    with pytest.raises(UsageError, match="no depth, mask or documents"):
        found.read(Inputs(ids, documents=torch.zeros_like(ids)))
    with pytest.raises(UsageError, match="25 tokens do not fit in a context of 24"):
        found.read(Inputs(torch.zeros(1, LENGTH + 1, dtype=torch.int64)))
    assert not isinstance(found, LanguageModule)  # so that commands that change weights refuse it
