"""Clusters: topics are told apart, sizes are equal where they should be, and what is kept reads back the same."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.config import Choice
from shoestring.data import Dataset, TokenStore, byte_tokenizer
from shoestring.data.clusters.assignment import balanced
from shoestring.data.clusters.balanced_kmeans import balanced_kmeans, plus_plus, squared_distances
from shoestring.data.clusters.clustering import CLUSTERS, Clustering, characteristic_tokens, cluster
from shoestring.data.clusters.embedding import EMBEDDING, Embedding, unit
from shoestring.data.clusters.features import blocks, hashed
from shoestring.errors import ShoestringError, UsageError
from shoestring.method import methods

TOPICS, EACH = 3, 12
END = 0


def topical(seed: int = 0, each: int = EACH, lengths: tuple[int, int] = (60, 200)) -> tuple[Dataset, np.ndarray]:
    """Documents of three topics, each with thirty words of its own among forty that all share; and their topics."""
    chance = np.random.default_rng(seed)
    documents, topics = [], []
    for _ in range(TOPICS * each):
        topic = int(chance.integers(TOPICS))
        length = int(chance.integers(*lengths))
        own = chance.integers(0, 30, length) + 50 + 30 * topic
        documents.append(np.where(chance.random(length) < 0.4, own, chance.integers(1, 41, length)).tolist())
        topics.append(topic)
    store = TokenStore.of(documents, END)
    return Dataset(store, store, byte_tokenizer(), "topical"), np.array(topics)


def purity(labels: np.ndarray, topics: np.ndarray) -> float:
    return sum(np.bincount(topics[labels == label]).max() for label in np.unique(labels)) / len(topics)


@pytest.mark.parametrize("name", [card.name for card in methods("data", "document embedding")])
def test_topics_are_found_the_same_each_time(name: str) -> None:
    dataset, topics = topical()
    embedding = Choice.of("data", name, kind="document embedding", bits=12)
    found = cluster(dataset, TOPICS, 3, embedding, CLUSTERS.choice().with_options(balance="none"))
    assert purity(found.labels, topics) == 1.0
    again = cluster(dataset, TOPICS, 3, embedding, CLUSTERS.choice().with_options(balance="none"))
    assert (again.labels == found.labels).all()
    assert (again.centres == found.centres).all()


def test_clusters_by_lot_know_nothing_of_topics_and_are_balanced() -> None:
    dataset, topics = topical(each=40)
    found = cluster(dataset, TOPICS, 0, EMBEDDING.choice(), Choice.of("data", "random", kind="clusters"))
    assert purity(found.labels, topics) < 0.6
    assert np.ptp(tokens_by_cluster(dataset, found.labels)) <= 200 * 2


def tokens_by_cluster(dataset: Dataset, labels: np.ndarray) -> np.ndarray:
    lengths = np.diff(np.append(dataset.train.document_starts, len(dataset.train)))
    return np.bincount(labels, weights=lengths)


def test_balance_is_of_tokens_or_of_documents() -> None:
    dataset, _ = topical(lengths=(20, 400))
    longest = 401
    by_tokens = cluster(dataset, 4, 0, EMBEDDING.choice(), CLUSTERS.choice())
    assert np.ptp(tokens_by_cluster(dataset, by_tokens.labels)) <= 4 * longest
    assert tokens_by_cluster(dataset, by_tokens.labels).max() <= len(dataset.train) / 4 + longest
    by_documents = cluster(dataset, 5, 0, EMBEDDING.choice(), CLUSTERS.choice().with_options(balance="documents"))
    assert np.ptp(np.bincount(by_documents.labels)) <= 1


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 40), k=st.integers(1, 6), seed=st.integers(0, 99), weighted=st.booleans())
def test_an_assignment_fills_no_cluster_beyond_its_share(n: int, k: int, seed: int, weighted: bool) -> None:
    chance = np.random.default_rng(seed)
    costs = chance.random((n, k))
    weights = chance.integers(1, 9, n) if weighted else None
    labels = balanced(costs, weights)
    load = np.bincount(labels, weights=weights, minlength=k)
    if weights is None:
        assert load.max() - load.min() <= 1
    else:
        assert load.max() < weights.sum() / k + weights.max()
    assert (labels == balanced(costs, weights)).all()


def test_a_balanced_assignment_costs_little_more_than_the_best() -> None:
    from scipy.optimize import linear_sum_assignment

    for seed in range(5):
        costs = np.random.default_rng(seed).random((60, 4)) ** 2
        rows, columns = linear_sum_assignment(np.repeat(costs, 15, axis=1))
        best = np.repeat(costs, 15, axis=1)[rows, columns].sum()
        assert costs[np.arange(60), balanced(costs)].sum() <= 1.01 * best


def test_an_easy_balanced_problem_is_solved_exactly() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    centres, labels = balanced_kmeans(vectors, np.ones(15, dtype=np.int64), 3, seed=0)
    assert sorted(np.bincount(labels)) == [5, 5, 5]
    assert squared_distances(vectors, centres)[np.arange(15), labels].max() < 1e-6


def test_first_centres_are_distinct_even_among_copies() -> None:
    vectors = np.zeros((6, 2), dtype=np.float32)
    assert len(plus_plus(vectors, 6, np.random.default_rng(0))) == 6


def test_squared_distances_are_those_of_the_definition() -> None:
    chance = np.random.default_rng(0)
    vectors, centres = chance.random((5, 3)).astype(np.float32), chance.random((2, 3)).astype(np.float32)
    slow = [[((vector - centre) ** 2).sum() for centre in centres] for vector in vectors]
    assert np.allclose(squared_distances(vectors, centres), slow, atol=1e-6)


def test_a_run_of_tokens_has_one_bucket_wherever_it_stands() -> None:
    tokens = np.array([[7, 8, 9, 7, 8, 5], [1, 1, 7, 8, 9, 2]])
    found = hashed(tokens, ngrams=3, buckets=1 << 20)
    assert found[0, 1, 1] == found[0, 4, 1] == found[1, 3, 1]  # 7 8
    assert found[0, 2, 2] == found[1, 4, 2]  # 7 8 9
    assert found[0, 0, 1] == found[0, 1, 2] == 1 << 20  # begins before the first place
    assert found[0, 1, 1] != hashed(np.array([8, 7]), 2, 1 << 20)[1, 1]
    different = hashed(np.arange(3000), 1, 1 << 16).reshape(-1)
    assert different.max() < 1 << 16
    assert len(np.unique(different)) > 2850  # near what chance leaves apart: 3000 - 3000^2 / 2^17 = 2931


def test_the_vector_of_a_prefix_is_that_of_a_document_cut_there() -> None:
    dataset, _ = topical()
    embedding: Embedding = EMBEDDING.choice().build(dataset.train, 0)
    row = dataset.train.tokens[:50].astype(np.int64)[None]
    ends = np.array([1, 2, 17, 50])
    found = embedding.prefixes(row, ends)
    for column, end in enumerate(ends):
        alone = embedding.documents(TokenStore.of([row[0, :end].tolist()], END))
        assert np.allclose(found[0, column], alone[0], atol=1e-5)
    assert np.allclose(np.linalg.norm(embedding.documents(dataset.train), axis=1), 1, atol=1e-5)
    assert (unit(np.zeros((1, 4))) == 0).all()


def test_later_tokens_do_not_move_the_vector_of_a_prefix() -> None:
    dataset, _ = topical()
    embedding: Embedding = EMBEDDING.choice().build(dataset.train, 0)
    row = dataset.train.tokens[:64].astype(np.int64)[None]
    other = row.copy()
    other[0, 40:] = 3
    ends = np.array([8, 40, 64])
    first, second = embedding.prefixes(row, ends), embedding.prefixes(other, ends)
    assert (first[0, :2] == second[0, :2]).all()
    assert not np.allclose(first[0, 2], second[0, 2])


def test_svd_directions_are_those_of_the_full_decomposition() -> None:
    from shoestring.data.clusters.embedding import tfidf

    dataset, _ = topical()
    rows, weights = tfidf(dataset.train, np.arange(TOPICS * EACH), 1, 1 << 10, 2)
    full = np.linalg.svd(rows.toarray(), full_matrices=False)[2][:4]
    made: Embedding = EMBEDDING.choice().with_options(dimensions=4, ngrams=1, bits=10).build(dataset.train, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        directions = np.where(weights[:, None] > 0, made.vectors / weights[:, None], 0).T
    assert np.allclose(np.abs((directions * full).sum(axis=1)), 1, atol=1e-2)
    assert np.allclose(directions @ directions.T, np.eye(4), atol=1e-4)


def test_documents_go_to_the_nearest_centre_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, topics = topical()
    found = cluster(dataset, TOPICS, 0, EMBEDDING.choice(), CLUSTERS.choice().with_options(balance="none"))
    whole = found.nearest(dataset.heldout)
    assert purity(whole, topics) == 1.0
    monkeypatch.setattr("shoestring.data.clusters.features.BLOCK", 100)
    assert len(list(blocks(dataset.train, np.arange(TOPICS * EACH)))) > 10
    assert (found.nearest(dataset.heldout) == whole).all()


def test_clusters_are_kept_in_a_file(tmp_path: Path) -> None:
    dataset, _ = topical()
    found = cluster(dataset, 2, 0, EMBEDDING.choice(), CLUSTERS.choice())
    found.write(tmp_path / "clusters.safetensors")
    back = Clustering.read(tmp_path / "clusters.safetensors")
    assert (back.nearest(dataset.train) == found.nearest(dataset.train)).all()
    assert (back.labels == found.labels).all()
    assert back.dataset == dataset.fingerprint
    (tmp_path / "clusters.safetensors").write_bytes(b"torn")
    with pytest.raises(ShoestringError, match="no clusters can be read"):
        Clustering.read(tmp_path / "clusters.safetensors")


def test_what_cannot_be_clustered_is_refused_in_a_line() -> None:
    dataset, _ = topical()
    with pytest.raises(UsageError, match="cannot make 99 clusters"):
        cluster(dataset, 99, 0, EMBEDDING.choice(), CLUSTERS.choice())
    same = TokenStore.of([[5, 6, 7]] * 10, END)
    with pytest.raises(UsageError, match="cannot be told apart"):
        cluster(Dataset(same, same, dataset.tokenizer, "same"), 2, 0, EMBEDDING.choice(), CLUSTERS.choice())


def test_the_telling_tokens_of_a_cluster_are_of_its_topic() -> None:
    dataset, topics = topical()
    telling = characteristic_tokens(dataset.train, topics, TOPICS, 257, 10)
    for topic in range(TOPICS):
        assert (telling[topic] >= 50 + 30 * topic).all()
        assert (telling[topic] < 80 + 30 * topic).all()
