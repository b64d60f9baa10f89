"""Packings: every target once an epoch, gradients of documents apart, the same rows after a restart, little padding."""

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoestring.config import Choice
from shoestring.contract.batch import IGNORED, Batch, Inputs
from shoestring.contract.objective import At
from shoestring.data import TokenStore
from shoestring.data.packings.histogram import Histogram, packed
from shoestring.data.packings.related_batches import RelatedBatches, along_the_tree, halved
from shoestring.data.packings.sorted_batches import SortedBatches
from shoestring.data.pieces import Pieces
from shoestring.errors import UsageError
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.objective.cross_entropy import plain
from shoestring.objective.next_token import NextToken

END = 0
CONTEXT = 16
TABLE: dict[str, dict[str, Any]] = {
    "histogram": {},
    "sorted_batches": {"group": 4},
    "related_batches": {"group": 4, "dimensions": 16},
}


def store_of(lengths: list[int], seed: int = 0) -> TokenStore:
    generator = np.random.default_rng(seed)
    return TokenStore.of([generator.integers(1, 40, length).tolist() for length in lengths], END)


def skewed(count: int = 60) -> TokenStore:
    generator = np.random.default_rng(5)
    return store_of(np.minimum(generator.geometric(0.2, count), 70).tolist())


def made(name: str, store: TokenStore, seed: int = 3, **more: Any) -> Any:
    return Choice.of("data", name, kind="packing", **{**TABLE[name], **more}).build(store, CONTEXT, seed)


def documents_of(batch: Batch) -> list[tuple[tuple[int, ...], tuple[int, ...], float]]:
    """(tokens read, targets, what a target counts) of each document in a batch."""
    found = []
    assert batch.inputs.documents is not None
    for row in range(batch.rows):
        numbers = batch.inputs.documents[row]
        for number in numbers.unique().tolist():
            here = (numbers == number) & (batch.targets[row] != IGNORED)
            if here.any():
                weights = torch.ones(1) if batch.weights is None else batch.weights[row][here]
                assert weights.unique().numel() == 1
                values = batch.inputs.values[row][here].tolist(), batch.targets[row][here].tolist()
                found.append((tuple(values[0]), tuple(values[1]), float(weights[0])))
    return found


def apart(store: TokenStore) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """What each document reads and predicts, cut by hand."""
    tokens, bounds = store.tokens.tolist(), [*store.document_starts.tolist(), len(store)]
    found = []
    for start, stop in pairwise(bounds):
        own = tokens[start:stop]
        cuts = range(0, len(own) - 1, CONTEXT)
        found += [(tuple(own[:-1][low : low + CONTEXT]), tuple(own[low + 1 : low + 1 + CONTEXT])) for low in cuts]
    return found


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("epoch", [0, 2])
def test_an_epoch_has_every_target_once(name: str, epoch: int) -> None:
    store = skewed()
    source = made(name, store)
    found = [each[:2] for each in documents_of(source.batch(epoch * len(source), len(source)))]
    expected = Counter(apart(store))
    assert not expected - Counter(found)
    more = Counter(found) - expected  # what the last group of sorted batches is filled up with
    assert sum(more.values()) < (TABLE[name].get("group") or 1)


@pytest.mark.parametrize("name", TABLE)
def test_a_row_is_a_pure_function_of_its_number(name: str) -> None:
    store = skewed()
    whole = documents_of(made(name, store).batch(0, 40))
    again = [each for start in range(0, 40, 4) for each in documents_of(made(name, store).batch(start, 4))]
    assert whole == again
    assert documents_of(made(name, store, seed=4).batch(0, 40)) != whole
    size = len(made(name, store))
    assert documents_of(made(name, store).batch(size, 8)) != documents_of(made(name, store).batch(0, 8))


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=40).filter(any), deepest=st.sampled_from([1, 3, 1 << 20])
)
@settings(max_examples=60)
def test_histogram_packing_fits_and_holds_every_piece(lengths: list[int], deepest: int) -> None:
    source = Histogram(store_of(lengths), CONTEXT, deepest=deepest)
    for count, own in source.packs:
        assert count > 0
        assert sum(own) <= CONTEXT
        assert len(own) <= deepest
    pieces = [piece for sequence in range(len(source)) for piece in source.row(sequence).tolist()]
    assert sorted(pieces) == list(range(len(source.pieces)))


def shortest_pack_first_by_hand(lengths: list[int], context: int) -> Counter[tuple[int, ...]]:
    packs: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fullness = [sum(pack) for pack in packs]
        if packs and min(fullness) + length <= context:
            packs[fullness.index(min(fullness))].append(length)
        else:
            packs.append([length])
    return Counter(map(tuple, packs))


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=40))
def test_histogram_packing_makes_the_rows_of_one_piece_at_a_time(lengths: list[int]) -> None:
    found = Counter[int]()  # by how full they are: of rows that are as full, either may be taken
    for count, own in packed(np.bincount(lengths, minlength=13), 12, 1 << 20):
        found[sum(own)] += count
    expected = Counter[int]()
    for own, count in shortest_pack_first_by_hand(lengths, 12).items():
        expected[sum(own)] += count
    assert found == expected


def test_histogram_packing_leaves_little_padding() -> None:
    generator = np.random.default_rng(1)
    source = Histogram(store_of(np.minimum(generator.geometric(0.02, 3000), 400).tolist()), 256)
    assert source.padding < 0.02
    unpacked = 1 - source.pieces.lengths.mean() / 256
    assert unpacked > 0.6
    batch = source.batch(0, len(source))
    assert 1 - batch.tokens / batch.targets.numel() == pytest.approx(source.padding)


def gradients(model: Transformer, batches: list[tuple[Batch, float]]) -> list[Tensor]:
    """Of the sum of the mean losses times their shares."""
    model.zero_grad()
    objective = NextToken(plain)
    for batch, share in batches:
        (objective(model, batch, At()).mean * share).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("weigh", ["tokens", "documents"])
def test_gradients_are_those_of_documents_apart(name: str, weigh: str) -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocabulary=40, layers=2, width=32, heads=4, context=CONTEXT))
    store = skewed(12)
    source = made(name, store, weigh=weigh)
    batch = source.batch(0, len(source))
    found = gradients(model, [(batch, 1.0)])
    alone = [each[:2] for each in documents_of(batch)]
    tokens = sum(len(read) for read, _ in alone)
    rows = [
        (
            Batch(Inputs(torch.tensor([read])), torch.tensor([targets])),
            len(read) / tokens if weigh == "tokens" else 1 / len(alone),
        )
        for read, targets in alone
    ]
    expected = gradients(model, rows)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-6
    assert max(float(one.abs().max()) for one in expected) > 1e-3


def test_weights_are_one_over_the_length() -> None:
    batch = made("histogram", skewed(), weigh="documents").batch(0, 5)
    for read, _, weight in documents_of(batch):
        assert weight == pytest.approx(1 / len(read))
    assert made("histogram", skewed()).batch(0, 2).weights is None


def test_sorted_batches_are_narrow_and_hold_documents_alike_in_length() -> None:
    source = SortedBatches(skewed(), CONTEXT, seed=1, group=4)
    widths = []
    for turn in range(len(source) // 4):
        batch = source.batch(turn * 4, 4)
        lengths = (batch.targets != IGNORED).sum(dim=1)
        assert batch.inputs.length == int(lengths.max())
        widths.append(int(lengths.max()))
        assert int(lengths.max() - lengths.min()) <= 4
    assert widths != sorted(widths)


def test_a_document_longer_than_a_row_is_cut_and_an_empty_one_left_out() -> None:
    pieces = Pieces(store_of([35, 0, 5]), CONTEXT)
    assert pieces.lengths.tolist() == [16, 16, 3, 5]
    with pytest.raises(UsageError, match="no document has a token to predict"):
        Pieces(store_of([0, 0]), CONTEXT)


@pytest.mark.parametrize(
    ("name", "options"),
    [("histogram", {"weigh": "rows"}), ("sorted_batches", {"group": 0}), ("related_batches", {"group": 0})],
)
def test_options_are_checked(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        made(name, skewed(), **options)


@pytest.mark.parametrize("name", TABLE)
def test_what_is_not_to_be_learnt_is_no_target_and_weighs_nothing(name: str) -> None:
    store = skewed(20)
    generator = np.random.default_rng(2)
    store.marks = TokenStore([generator.integers(0, 2, len(store)).astype(np.uint8)], store.document_starts, 0)
    source = made(name, store, weigh="documents")
    batch = source.batch(0, len(source))
    marks, tokens = store.marks.tokens, store.tokens
    expected = Counter[tuple[int, ...]]()
    for start, length in zip(source.pieces.starts.tolist(), source.pieces.lengths.tolist(), strict=True):
        own = range(start + 1, start + length + 1)
        expected[tuple(int(tokens[place]) for place in own if marks[place])] += 1
    found = Counter[tuple[int, ...]]()
    assert batch.weights is not None
    for _, targets, weight in documents_of(batch):
        found[targets] += 1
        assert weight == pytest.approx(1 / len(targets))
    del expected[()]
    assert not expected - found
    assert not batch.weights[batch.targets == IGNORED].any()


def test_stores_that_are_joined_keep_their_marks() -> None:
    stores = [store_of([3, 4]), store_of([5], seed=1)]
    for number, store in enumerate(stores):
        store.marks = TokenStore([np.full(len(store), number, np.uint8)], store.document_starts, 0)
    whole = TokenStore.joined(stores)
    assert whole.marks is not None
    assert whole.marks.tokens.tolist() == [0] * 9 + [1] * 6
    with pytest.raises(ValueError, match="all marked, or none"):
        TokenStore.joined([stores[0], store_of([2])])


# ---- batches of related documents


def about(subjects: int, each: int) -> TokenStore:
    """Documents of `subjects` kinds, whose words are apart, one of each kind in turn."""
    generator = np.random.default_rng(4)
    kinds = [number % subjects for number in range(subjects * each)]
    return TokenStore.of([(1 + 10 * kind + generator.integers(0, 8, 12)).tolist() for kind in kinds], END)


def test_a_group_is_of_one_subject_and_its_batches_change() -> None:
    source = RelatedBatches(about(5, 8), CONTEXT, seed=1, group=8)
    assert len(source) == 40
    subjects = []
    for turn in range(10):
        words = source.batch(turn * 8, 8).inputs.values
        own = {(int(word) - 1) // 10 for word in words.flatten() if word}
        assert len(own) == 1
        subjects.append(own.pop())
    assert sorted(subjects[:5]) == sorted(subjects[5:]) == list(range(5))
    assert subjects[:5] != subjects[5:]


def halved_by_hand(vectors: np.ndarray, first: int, rounds: int) -> list[int]:
    middle = vectors.mean(0)
    one = max(vectors, key=lambda row: float(((row - middle) ** 2).sum()))
    other = max(vectors, key=lambda row: float(((row - one) ** 2).sum()))
    lower: list[int] = []
    for _ in range(rounds):
        gap = [float(((row - one) ** 2).sum() - ((row - other) ** 2).sum()) for row in vectors]
        lower = sorted(sorted(range(len(vectors)), key=gap.__getitem__)[:first])
        rest = [row for row in range(len(vectors)) if row not in lower]
        one, other = vectors[lower].mean(0), vectors[rest].mean(0)
    return lower


@pytest.mark.parametrize("seed", range(4))
def test_a_set_is_halved_as_a_slow_reference_does_it(seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(21, 3))
    lower, upper = halved(vectors, 8, 6)
    assert lower.tolist() == halved_by_hand(vectors, 8, 6)
    assert sorted([*lower, *upper]) == list(range(21))
    assert sorted(along_the_tree(vectors, 4, 6).tolist()) == list(range(21))
    assert sorted(along_the_tree(np.zeros((9, 2)), 4, 6).tolist()) == list(range(9))
