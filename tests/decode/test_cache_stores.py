"""How a paged cache holds numbers: each store through the same table."""

from collections.abc import Callable

import pytest
import torch

from shoestring import kernels
from shoestring.config import build
from shoestring.contract.model import LanguageModel
from shoestring.decode import Engine, Request
from shoestring.decode.cache_store import Side
from shoestring.decode.cache_stores.int8 import Int8Store
from shoestring.decode.store import PagedStore
from shoestring.model import ModelConfig, Transformer
from tests.decode.cached_texts import COUNT, GREEDY, MODELS, STORES, TEXTS, held_store, written
from tests.decode.random_models import native, one_by_one, wrapped


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return MODELS[request.param]()


@pytest.mark.parametrize(("name", "width"), [("int8", 48), ("int4", 128)])
def test_the_native_pass_writes_codes_as_the_store_makes_them(name: str, width: int) -> None:
    torch.manual_seed(0)
    sizes = {"layers": 1, "width": width, "heads": 4, "vocabulary": 64, "context": 64, "key_value_heads": 2}
    model = Transformer(build(ModelConfig, sizes)).requires_grad_(False).eval()
    text, sides = tuple(range(30)), list[torch.Tensor]()
    with torch.no_grad():
        model.embedding.weight[3:6] *= 1e-4  # codes of what is hardly there
    for kind in ("plain", name):
        store = PagedStore(model, 40, 4, store=held_store(kind))
        engine = Engine(model, store=store, rows=1, tokens=7)
        engine.submit(Request(text, GREEDY, 2))
        while engine.passes < 3:
            engine.step()
        layer, slots = store.cache.layers[0], store.cache._slots(1, 21)
        sides += [side.codes[0][slots] for side in (layer.key_side, layer.value_side)]
    for plain, codes in zip(sides[:2], sides[2:], strict=True):
        assert torch.equal(held_store(name).encode(plain)[0], codes)


@pytest.mark.skipif(kernels.kernel_in_use() == kernels.TORCH, reason="the native library was not built")
@pytest.mark.parametrize("made", [native, lambda: wrapped("mistral")], ids=["native", "wrapped"])
def test_codes_are_read_where_they_are(made: Callable[[], LanguageModel], monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> torch.Tensor:
        raise AssertionError("codes were decoded")

    monkeypatch.setattr(Int8Store, "decode", decode)
    model = made()
    engine = Engine(model, store=PagedStore(model, 40, 4, store=held_store("int8")), rows=2, tokens=7)
    assert all(map(len, written(engine, TEXTS[:2])))


@pytest.mark.parametrize("store", STORES)
def test_a_store_reads_what_was_written(store: str) -> None:
    torch.manual_seed(0)
    held = held_store(store)
    x = torch.randn(30, 2, 8) * torch.logspace(-2, 2, 30)[:, None, None]
    x[3] = 0
    side = Side(held, 40, 2, 8, x)
    at = torch.randperm(40)[:30]
    side.write(at, x)
    error = (side.read(at) - x).abs().amax(-1)
    bound = {"int8": 0.51 / 127, "int4": 0.51 / 7.5}.get(store, 0.0) * x.abs().amax(-1) + (0 if held.exact else 1e-3)
    assert (error <= bound).all()
    assert held.exact == bool((error == 0).all())
    before = side.read(at)
    side.copy(torch.stack((at[:9], at[9:18])), at[20:29])  # each head from places of its own
    assert torch.equal(side.read(at[20:29]), torch.stack((before[:9, 0], before[9:18, 1]), 1))
    whole = sum(code.nbytes for code in side.codes)
    assert side.nbytes + side.elsewhere == whole
    assert whole <= x.element_size() * 40 * 16
    if not held.exact:
        assert whole < x.element_size() * 40 * 16 / 2


@pytest.mark.parametrize("store", STORES)
def test_texts_of_a_store_are_those_of_any_passes(model: LanguageModel, store: str) -> None:
    def engine(rows: int, tokens: int) -> Engine:
        return Engine(model, store=PagedStore(model, 60, 4, store=held_store(store)), rows=rows, tokens=tokens)

    alone = [written(engine(1, 5), [text])[0] for text in TEXTS]
    assert written(engine(3, 64)) == alone
    if held_store(store).exact:
        assert alone == [one_by_one(model, text, COUNT) for text in TEXTS]
