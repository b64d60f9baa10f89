"""Tokens that leave on the way through the layers and come back: a slow reference, and what it saves."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from shoestring.config import Choice, build
from shoestring.decode import Engine, Request
from shoestring.decode.cache_stores.lazyllm import LazyCache
from shoestring.decode.separate_store import SeparateStore
from shoestring.decode.text_cache import TextStore
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.model.rotary import rotate
from tests.decode.cached_texts import COUNT, GREEDY, TEXTS, written
from tests.decode.random_models import one_by_one, wrapped


def deep() -> Transformer:
    torch.manual_seed(2)
    shape = {"layers": 4, "width": 32, "heads": 4, "vocabulary": 40, "context": 64, "key_value_heads": 2}
    made = Transformer(build(ModelConfig, shape))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    return made.requires_grad_(False).eval()


def store(stages: int, keep: float) -> TextStore:
    made: TextStore = Choice.of("decode", "lazyllm", kind="cache store", stages=stages, keep=keep).build()
    return made


@torch.no_grad()
def reference(
    model: Transformer, prompt: tuple[int, ...], count: int, shares: dict[int, float]
) -> tuple[list[int], int]:
    """(what is written greedily, how many tokens came back), in loops over tokens."""
    size, text, came_back = len(prompt), list(prompt), 0
    before = dict[int, float]()
    # of each layer, by position: what it takes in, and what it gives its keys and values
    given: list[dict[int, Tensor]] = [{} for _ in range(5)]
    keys: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in range(4)]
    while len(text) < size + count:
        last = len(text) - 1
        wanted, at = set(range(len(text))), range(size) if last == size - 1 else range(last, last + 1)
        for position in at:
            given[0][position] = model.embedding.weight[text[position]]
        blocks: list[Any] = list(model.blocks)
        for layer, block in enumerate(blocks):
            mixer, looked = block.token_mixer, dict[int, float]()
            if layer in shares:
                ranked = sorted((p for p in before if p < size), key=lambda p: (-before[p], p))
                room = math.ceil(shares[layer] * size)
                wanted = set(ranked[:room]) | set(range(size, last + 1)) | {last}
            new = sorted(p for p in wanted if p in given[layer] and p not in keys[layer])
            came_back += sum(p != last for p in new) * (last >= size)
            queries = {}
            for p in new:
                parts = mixer.qkv(block.token_norm(given[layer][p])).view(-1, 8)
                tables = model.rotary.cos[p], model.rotary.sin[p]
                queries[p] = rotate(mixer.query_norm(parts[:4]), *tables)
                keys[layer][p] = rotate(mixer.key_norm(parts[4:6]), *tables), parts[6:]
            for p in new:
                seen = sorted(s for s in wanted if s in keys[layer] and s <= p)
                mixed = []
                for head in range(4):
                    scores = torch.stack([queries[p][head] @ keys[layer][s][0][head // 2] for s in seen]) / 8**0.5
                    weights = scores.softmax(0)
                    mixed.append(sum(w * keys[layer][s][1][head // 2] for w, s in zip(weights, seen, strict=True)))
                    if p == last:
                        for w, s in zip(weights.tolist(), seen, strict=True):
                            looked[s] = looked.get(s, 0.0) + w / 4
                x = given[layer][p] + mixer.output(torch.cat(mixed))
                given[layer + 1][p] = x + block.channel_mixer(block.channel_norm(x))
            before = looked
        text.append(int((model.norm(given[4][last]) @ model.embedding.weight.T).argmax()))
    return text[size:], came_back


def test_what_leaves_and_comes_back_is_that_of_a_slow_reference() -> None:
    model, back = deep(), 0
    for text in TEXTS:
        expected, came = reference(model, text, COUNT, {1: 0.5, 3: 0.25})
        back += came
        for tokens in (64, 5):
            engine = Engine(model, store=SeparateStore(model, 300, 2, store=store(2, 0.5)), rows=2, tokens=tokens)
            assert written(engine, [text])[0] == expected
    assert back > 0


def test_nothing_leaves_where_all_are_kept_and_less_is_computed_where_some_do() -> None:
    model = deep()
    flops = {}
    for keep in (1.0, 0.3):
        engine = Engine(model, store=SeparateStore(model, 300, 1, store=store(2, keep)), rows=1, tokens=64)
        (answer,) = engine.run([Request(TEXTS[2], GREEDY, 1)])
        flops[keep] = answer.spent.charge.flops
        if keep == 1:
            assert list(answer.tokens) == one_by_one(model, TEXTS[2], 1)
    assert flops[0.3] < 0.7 * flops[1.0]


def test_it_is_for_native_models_of_enough_layers() -> None:
    model = wrapped("gpt2")
    with pytest.raises(UsageError, match="only a native model"):
        written(Engine(model, store=SeparateStore(model, 300, 1, store=store(1, 0.5)), rows=1), TEXTS[:1])
    with pytest.raises(UsageError, match="leave between layers"):
        store(4, 0.5).cache(deep(), 10)
    assert isinstance(store(3, 0.5).cache(deep(), 10), LazyCache)
