"""Embeddings and frontends, each against a slow reference written from its paper."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.config import Choice
from shoestring.contract.batch import Inputs
from shoestring.model import ModelConfig, Transformer
from shoestring.model.span import Where
from tests.model.mixer_references import scattered

WIDTH, HEADS = 12, 2


def test_nano_embedding() -> None:
    """A token is its row of the table times the matrix, and a tied head scores hidden states with the same product."""
    torch.manual_seed(6)
    options: dict[str, Any] = {"layers": 1, "width": WIDTH, "heads": HEADS, "vocabulary": 9, "context": 8}
    model: Any = Transformer(
        ModelConfig(**options, embedding=Choice.of("model", "nano", kind="embedding", rank=5))
    ).double()
    whole = model.embedding.weight @ model.narrow.weight
    assert whole.shape == (9, WIDTH)
    ids = torch.tensor([[3, 0, 8]])
    torch.testing.assert_close(model.embedded(ids), whole[ids])
    reading = model.read(Inputs(ids))
    torch.testing.assert_close(reading.logits(), reading.hidden @ whole.T)
    assert sum(p.numel() for n, p in model.named_parameters() if "blocks" not in n) == 5 * (9 + WIDTH) + WIDTH


@pytest.mark.parametrize("packed", [False, True])
def test_scone(packed: bool) -> None:
    """The longest listed n-gram that ends at a place, by a slow search, and the embedding that the network makes of it."""
    torch.manual_seed(2)
    grams = [(1, 2), (2, 1), (1, 2, 1), (3, 3), (0, 1, 2)]
    listed = [" ".join(map(str, gram)) for gram in grams]
    span = Choice.of("model", "scone", kind="span", ngrams=listed, inner=4, hidden=6).build(WIDTH)
    span.told(5)
    span.double().eval()
    values = torch.tensor([[1, 2, 1, 2, 3, 3, 3, 0, 1, 2], [0, 1, 2, 1, 4, 1, 2, 2, 1, 0]])
    documents = (torch.arange(10) > 1).long().expand(2, -1) if packed else None
    x = torch.randn(2, 10, WIDTH, dtype=torch.float64)
    tables = (torch.ones(16, 1, 2), torch.zeros(16, 1, 2))
    found, _ = span(lambda x, *_: (x, {}), x, Where((tables,), None, documents, values=values), [None])
    wanted = x.clone()
    for row in range(2):
        for place in range(10):
            for gram in sorted(grams, key=len):
                start = place - len(gram) + 1
                if start < 0 or tuple(values[row, start : place + 1].tolist()) != gram:
                    continue
                if packed and start <= 1 < place:
                    continue
                padded = [5] * (3 - len(gram)) + list(gram)
                inside = torch.cat([span.tokens.weight[token] for token in padded])
                wanted[row, place] = span.second.weight @ F.gelu(span.first.weight @ inside)
    assert not torch.equal(wanted, x)
    torch.testing.assert_close(found, wanted)
    assert span.tabulate() == span._own_flops(False)
    again, _ = span(lambda x, *_: (x, {}), x, Where((tables,), None, documents, values=values), [None])
    torch.testing.assert_close(again, wanted)
    assert span.train()._table is None


@pytest.mark.parametrize("packed", [False, True])
def test_byte_pool(packed: bool) -> None:
    """Patches by a slow loop: each byte is told of the last whole patch of its document, and of no other."""
    torch.manual_seed(9)
    length, size = 14, 3
    span = scattered(Choice.of("model", "byte_pool", kind="span", patch=size).build(WIDTH))
    documents = (torch.arange(length) > 7).long().expand(2, -1) if packed else None
    before = torch.ones(length, length, dtype=torch.bool).tril()
    mask = None if documents is None else ((documents[:, :, None] == documents[:, None]) & before)[:, None]
    x = torch.randn(2, length, WIDTH, dtype=torch.float64)

    def inner(x: Tensor, where: Where, caches: Any) -> tuple[Tensor, dict[str, Tensor]]:
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() if where.mask is None else where.mask[:, 0]
        weights = torch.where(seen, 1.0, -torch.inf).double().softmax(-1)
        return torch.tanh(weights @ x), {}

    tables = (torch.ones(32, 1, 2), torch.zeros(32, 1, 2))
    found, _ = span(inner, x, Where((tables,), mask, documents), [None])
    for row in range(2):
        wanted = x[row].clone()
        for first, last in ((0, 8), (8, length)) if packed else ((0, length),):
            patches: list[Tensor] = []
            for place in range(first, last):
                number = place - first
                if (number + 1) % size == 0:
                    part = x[row, place - size + 1 : place + 1]
                    scores = part @ span.query.weight[0] / math.sqrt(WIDTH) + span.place_scores
                    patches.append(span.pool.weight @ (scores.softmax(0)[:, None] * part).sum(0))
                if patches:
                    h = torch.stack(patches).mean(0).tanh()
                    wanted[place] = x[row, place] + span.back.weight @ h + span.offsets[(number + 1) % size]
        torch.testing.assert_close(found[row], wanted)


@pytest.mark.parametrize("packed", [False, True])
def test_hash_projection(packed: bool) -> None:
    """Hashes, minima and counts in plain integers, of the trigrams that end at each token."""
    torch.manual_seed(2)
    options = {"features": 7, "hashes": 5, "unit": 3, "window": 2}
    span = Choice.of("model", "hash_projection", kind="span", **options).build(WIDTH).double()
    span.told(9)
    values = torch.randint(9, (2, 13))
    documents = (torch.arange(13) > 5).long().expand(2, -1) if packed else None
    found, _ = span(
        lambda x, *_: (x, {}), torch.zeros(2, 13, WIDTH).double(), Where((), None, documents, values=values), [None]
    )

    def spread(number: int, factor: int) -> int:
        mixed = (number + 1) * factor % 2**64
        mixed = (mixed ^ (mixed >> 29)) * factor % 2**64
        return (mixed >> 32) % 2**31

    for row in range(2):
        for first, last in ((0, 6), (6, 13)) if packed else ((0, 13),):
            text = values[row, first:last].tolist()
            minima: list[list[int]] = []
            filters: list[Tensor] = []
            for place in range(len(text)):
                gram = sum((text[place - back] + 1) * 11**back for back in range(3) if place >= back)
                a, b = (spread(gram, factor % 2**64) for factor in (-7046029254386353131, -4417276706812531889))
                minima.append([(a + i * b) % (2**31 - 1) for i in range(5)])
                least = [min(one[i] for one in minima[-3:]) for i in range(5)]
                counts = torch.zeros(7, dtype=torch.float64)
                for value in least:
                    counts[value % 7] += 1
                filters.append(counts / math.sqrt(5))
                both = torch.cat((filters[-1], filters[-2] if place else torch.zeros(7, dtype=torch.float64)))
                torch.testing.assert_close(found[row, first + place], span.bottleneck.weight @ both)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_space_byte(training: bool, packed: bool) -> None:
    """Which bytes go through, by the bytes of a text; the layer within sees those alone, and none of another document."""
    text = b"so, 12\xc3\xa9 (a  b)" + bytes([7])
    torch.manual_seed(9)
    span = Choice.of("model", "space_byte", kind="span", capacity=0.2).build(WIDTH).train(training)
    values = torch.tensor([list(text), list(text[::-1])])
    values[1, -1] = 256  # the end token
    documents = (torch.arange(values.shape[1]) > 8).long().expand(2, -1) if packed else None
    x = torch.randn(*values.shape, WIDTH, dtype=torch.float64)

    def inner(x: Tensor, where: Where, caches: Any) -> tuple[Tensor, dict[str, Tensor]]:
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() if where.mask is None else where.mask[:, 0]
        weights = torch.where(seen, 1.0, -torch.inf).double().softmax(-1)
        return torch.tanh(weights @ x), {}

    before = torch.ones(values.shape[1], values.shape[1], dtype=torch.bool).tril()
    mask = None if documents is None else ((documents[:, :, None] == documents[:, None]) & before)[:, None]
    tables = (torch.ones(32, 1, 2), torch.zeros(32, 1, 2))
    found, _ = span(inner, x, Where((tables,), mask, documents, values=values), [None])
    word = {*b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", *range(0x80, 0xC0)}
    for row in range(2):
        through: list[int] = []
        for place, byte in enumerate(values[row].tolist()):
            first = place == 0 or (packed and place == 9)
            if first or (byte not in word and values[row, place - 1].item() in word):
                through.append(place)
        if training:
            through = through[:4]  # a fifth of 18 places
        else:
            assert len(through) > 4
        wanted = x[row].clone()
        for place in through:
            seen = [p for p in through if p <= place and (not packed or (p > 8) == (place > 8))]
            wanted[place] = x[row, seen].mean(0).tanh()
        torch.testing.assert_close(found[row], wanted)
