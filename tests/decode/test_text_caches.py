"""Caches that hold a text as a whole, each in its own way."""

import math
from typing import Any

import pytest
import torch

from shoestring.config import Choice
from shoestring.contract.model import LanguageModel
from shoestring.decode import Engine, Request
from shoestring.decode.cache_stores.lighttransfer import StreamingLayer
from shoestring.decode.cache_stores.minicache import Stretch
from shoestring.decode.cache_stores.shadowkv import ShadowLayer
from shoestring.decode.cache_stores.sparse_prefill import SparseLayer
from shoestring.decode.separate_store import SeparateStore
from shoestring.decode.text_cache import TextStore
from shoestring.errors import UsageError
from shoestring.model.wrapped import Wrapped
from tests.decode.cached_texts import (
    COUNT,
    GREEDY,
    MODELS,
    TEXT_STORES,
    TEXTS,
    written,
)
from tests.decode.masked_reference import SLOW, read_masked
from tests.decode.random_models import native, one_by_one


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return MODELS[request.param]()


HOLDING: dict[str, dict[str, Any]] = {
    "minicache": {"start": 0.0, "stride": 4, "retained": 0.2},
    "lighttransfer": {"share": 0.5, "sinks": 2, "latest": 6, "observed": 4},
    "sparse_prefill": {"piece": 6, "observed": 3, "share": 0.3},
    "shadowkv": {"rank": 6, "chunk": 2, "chosen": 6, "outliers": 1},
}


@pytest.mark.parametrize("name", TEXT_STORES)
def test_a_text_that_is_held_otherwise_depends_on_itself_alone(model: LanguageModel, name: str) -> None:
    made: TextStore = Choice.of("decode", name, kind="cache store", **HOLDING[name]).build()
    if isinstance(model, Wrapped) and model.config.model_type == "mistral":
        if name != "minicache":
            return  # they attend themselves, as on the other models
        with pytest.raises(UsageError, match="they read with a plain cache"):
            written(Engine(model, store=SeparateStore(model, 200, 1, store=made), rows=1), TEXTS[:1])
        return

    def engine(rows: int, tokens: int, room: int = 200) -> Engine:
        return Engine(model, store=SeparateStore(model, room, rows, store=made), rows=rows, tokens=tokens)

    alone = [written(engine(1, 5), [text])[0] for text in TEXTS]
    assert alone != [one_by_one(model, text, COUNT) for text in TEXTS]
    assert written(engine(3, 64)) == alone
    assert written(engine(3, 8, 90)) == alone  # where not all have room at once
    assert written(engine(2, 8), TEXTS[:1], samples=2) == alone[:1] * 2
    # bytes are fewer for real
    last = engine(1, 64)
    last.submit(Request(TEXTS[2], GREEDY, COUNT))
    while all(event.stop is None for event in last.step()):
        held = last.store.nbytes
    read = len(TEXTS[2]) + COUNT - 2
    each = 2 * 2 * model.new_cache(1, 1).layers[0].keys.nbytes
    assert held < {"minicache": 0.9, "shadowkv": 0.75, "lighttransfer": 0.8, "sparse_prefill": 1.2}[name] * read * each


def test_lazy_layers_are_the_ones_that_look_at_ends_and_see_no_more_than_these() -> None:
    model, window = native(), SLOW["window"][1]
    made = Choice.of("decode", "lighttransfer", kind="cache store", share=1.0, sinks=4, latest=8, observed=3).build()
    store = SeparateStore(model, 300, 1, store=made)
    expected, _ = read_masked(model, TEXTS[1], COUNT, window, 13, 1, whole=True)
    assert written(Engine(model, store=store, rows=1), TEXTS[1:2]) == [expected]
    layer = StreamingLayer(2, 3, 4)
    torch.manual_seed(0)
    queries, keys = torch.randn(1, 4, 12, 8), torch.randn(1, 2, 12, 8)
    layer.attend(queries, keys, keys)
    total = 0.0
    for head in range(4):
        for token in range(8, 12):
            weights = (keys[0, head // 2, : token + 1] @ queries[0, head, token] / 8**0.5).softmax(0).tolist()
            total += sum(w for at, w in enumerate(weights) if at < 2 or token - at <= 3) / 16
    assert layer.laziness() == pytest.approx(total, abs=1e-5)


def test_merged_vectors_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 9, 4)
    stretch = Stretch(x, y, 0.6, 2)
    for head in range(3):
        for token in range(9):
            u, v = x[head, token] / x[head, token].norm(), y[head, token] / y[head, token].norm()
            angle = math.acos(float(u @ v))
            e = (math.sin(0.4 * angle) * u + math.sin(0.6 * angle) * v) / math.sin(angle)
            for which, z in enumerate((x, y)):
                expected = z[head, token] if token in stretch.apart else e * z[head, token].norm()
                torch.testing.assert_close(stretch.read(which)[head, token], expected)
    angles = [sum(float(torch.cosine_similarity(x[h, t], y[h, t], dim=0).arccos()) for h in range(3)) for t in range(9)]
    assert stretch.apart.tolist() == sorted(sorted(range(9), key=lambda t: -angles[t])[:2])


def test_low_rank_keys_that_choose_all_attend_as_the_whole_cache_does() -> None:
    model = native()
    expected = [one_by_one(model, text, COUNT) for text in TEXTS]
    # all but one chunk is read, and of full rank: what is left out is the chunk that is liked least
    made = Choice.of("decode", "shadowkv", kind="cache store", rank=64, chunk=1, chosen=19, outliers=1).build()
    assert (
        written(Engine(model, store=SeparateStore(model, 300, 3, store=made), rows=3), TEXTS[:1])[0][0]
        == expected[0][0]
    )
    layer = ShadowLayer(made, (model.rotary.cos, model.rotary.sin))
    torch.manual_seed(0)
    queries, keys, values = torch.randn(1, 4, 25, 8), torch.randn(1, 2, 25, 8), torch.randn(1, 2, 25, 8)
    layer.attend(queries, keys, values)
    layer.settle()
    near, far = layer._chosen(torch.randn(1, 4, 1, 8))
    for head in range(2):
        found = [int((values[0, head] - one).abs().sum(-1).argmin()) for one in far[0, head]]
        assert len(set(found)) == 20
        torch.testing.assert_close(near[0, head], keys[0, head, found], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(far[0, head], values[0, head, found])


def test_pieces_of_a_prompt_see_what_mattered_to_the_piece_before() -> None:
    torch.manual_seed(0)
    queries, keys, values = torch.randn(1, 4, 12, 8) * 2, torch.randn(1, 2, 12, 8), torch.randn(1, 2, 12, 8)
    layer = SparseLayer(0.6, 2)
    layer.attend(queries[:, :, :6], keys[:, :, :6], values[:, :, :6])
    layer.choose()
    before = layer.scored
    found = torch.cat([layer.attend(*(one[:, :, at : at + 3] for one in (queries, keys, values))) for at in (6, 9)], 2)
    patterns = []
    for head in range(4):
        weights = []
        for token in (4, 5):  # those that are observed
            scores = keys[0, head // 2, : token + 1] @ queries[0, head, token] / 8**0.5
            weights.append([*scores.softmax(0).tolist(), *[0.0] * (5 - token)])
        columns = sorted(range(6), key=lambda j: -(weights[0][j] + weights[1][j]))
        slants = sorted(range(6), key=lambda d: -sum(w[t - d] for t, w in zip((4, 5), weights, strict=True) if t >= d))
        count = 1
        while True:
            chosen = columns[:count], slants[:count]
            kept = sum(
                w[j] / 2
                for t, w in zip((4, 5), weights, strict=True)
                for j in range(t + 1)
                if j in chosen[0] or t - j in chosen[1]
            )
            if kept >= 0.6 or count >= 6:
                break
            count *= 2
        patterns.append(chosen)
        for token in range(6, 12):
            seen = [j for j in range(token + 1) if j >= 6 or j in chosen[0] or token - j in chosen[1]]
            mixed = (keys[0, head // 2, seen] @ queries[0, head, token] / 8**0.5).softmax(0) @ values[
                0, head // 2, seen
            ]
            torch.testing.assert_close(found[0, head, token - 6], mixed)
    assert len({len(columns) for columns, _ in patterns}) > 1  # each head has as many as it needs
    assert layer.scored - before < 4 * (3 * 9 + 3 * 12)
    # what keeps all of the attention is what all attention says
    whole, plain = SparseLayer(1.0, 2), SparseLayer(1.0, 2)
    for at in (0, 6):
        part = tuple(one[:, :, at : at + 6] for one in (queries, keys, values))
        torch.testing.assert_close(whole.attend(*part), plain.attend(*part))
        whole.choose()


def test_chunks_are_chosen_by_the_scores_of_attention_and_outliers_by_each_head() -> None:
    made = Choice.of("decode", "shadowkv", kind="cache store", rank=64, chunk=2, chosen=4, outliers=1).build()
    layer = ShadowLayer(made, None)
    torch.manual_seed(6)
    queries, keys, values = torch.randn(1, 4, 24, 8), torch.randn(1, 2, 24, 8), torch.randn(1, 2, 24, 8)
    layer.attend(queries, keys, values)
    layer.settle()
    asked = torch.randn(1, 4, 1, 8) * 3
    layer.attend(asked, torch.randn(1, 2, 1, 8), torch.randn(1, 2, 1, 8), scale=0.1)
    _, far = layer._chosen(asked)
    for head in range(2):
        means = [(keys[0, head, 2 * c] + keys[0, head, 2 * c + 1]) / 2 for c in range(12)]
        likeness = [
            min(float(torch.cosine_similarity(keys[0, head, 2 * c + i], means[c], dim=0)) for i in range(2))
            for c in range(12)
        ]
        outlier = likeness.index(min(likeness))
        looked = [0.0] * 12
        for query in asked[0, 2 * head : 2 * head + 2, 0]:
            weights = (torch.stack(means) @ query * 0.1).softmax(0).tolist()
            looked = [max(both) for both in zip(looked, weights, strict=True)]
        best = sorted((c for c in range(12) if c != outlier), key=lambda c: -looked[c])[:2]
        places = [2 * c + i for c in (*sorted(best), outlier) for i in range(2)]
        torch.testing.assert_close(far[0, head], values[0, head, places])
    with pytest.raises(UsageError, match="see a window"):
        layer.attend(asked, keys[:, :, :1], values[:, :, :1], window=4)
