"""Each curator against a slow reference, and all of them in one table."""

import random
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.data.curation.account import Account
from shoestring.data.curation.column import KEPT, Column
from shoestring.data.curation.curators.exact_duplicates import ExactDuplicates, firsts, normalised
from shoestring.data.curation.curators.minhash import MinHash
from shoestring.data.curation.curators.quality_rules import REASONS, QualityRules, commonest, repeated
from shoestring.data.curation.shingles import digests, shingles, units
from shoestring.errors import UsageError
from shoestring.method import find
from tests.data.curation.texts import edited, opened, sentence

# ---- exact duplicates


@given(rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=30))
def test_firsts_are_those_of_a_plain_loop(rows: list[tuple[int, int]]) -> None:
    found = firsts(np.array(rows, dtype=np.uint64).reshape(-1, 2))
    assert found.tolist() == [rows.index(row) for row in rows]


def test_copies_are_dropped_and_name_the_first(tmp_path: Path) -> None:
    documents = opened(["a b", "c", "A  b!", "a b", "c"], tmp_path)
    column = ExactDuplicates()(documents, Account())
    assert column.kept.tolist() == [True, True, True, False, False]
    assert column.values["of"].tolist() == [-1, -1, -1, 0, 1]
    column = ExactDuplicates(normalise=True)(documents, Account())
    assert column.kept.tolist() == [True, True, False, False, False]
    assert normalised("A  b!\n") == "a b"


# ---- near-duplicates


def jaccard(one: str, other: str, ngram: int) -> float:
    sets = [
        {tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)} for words in (one.split(), other.split())
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def clusters_by_hand(texts: list[str], threshold: float, ngram: int) -> list[int]:
    """The first document of each document's cluster, from the exact similarity of every pair."""
    first = list(range(len(texts)))
    changed = True
    while changed:
        changed = False
        for one, other in combinations(range(len(texts)), 2):
            if first[one] != first[other] and jaccard(texts[one], texts[other], ngram) >= threshold:
                first = [min(first[one], first[other]) if f in (first[one], first[other]) else f for f in first]
                changed = True
    return first


def alike() -> list[str]:
    """Documents, each with near copies (J about 0.85) and far ones (J about 0.3)."""
    generator = random.Random(0)
    texts = []
    for _ in range(8):
        base = sentence(generator, 300)
        texts += [base, edited(base, 0.015, generator), edited(base, 0.2, generator), sentence(generator, 200)]
    generator.shuffle(texts)
    return texts


def test_minhash_finds_the_clusters_of_the_exact_similarity(tmp_path: Path) -> None:
    texts = alike()
    expected = clusters_by_hand(texts, 0.7, 5)
    column = MinHash(threshold=0.7, permutations=512)(opened(texts, tmp_path), Account())
    assert [of if of >= 0 else place for place, of in enumerate(column.values["of"].tolist())] == expected
    assert column.values["copies"].tolist() == [expected.count(first) for first in expected]
    assert 8 <= (~column.kept).sum() < len(texts)


def test_signatures_agree_as_often_as_the_sets_do() -> None:
    generator = random.Random(1)
    base = sentence(generator, 400)
    texts = [base, *(edited(base, share, generator) for share in (0.01, 0.05, 0.1, 0.3))]
    signatures = MinHash(permutations=1024).signatures(texts)["signature"]
    for place in range(1, len(texts)):
        exact = jaccard(base, texts[place], 5)
        assert (signatures[0] == signatures[place]).mean() == pytest.approx(exact, abs=4 * (0.25 / 1024) ** 0.5)


def test_bands_find_pairs_at_the_threshold_as_often_as_asked() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.95):
        curator = MinHash(threshold=threshold, recall=0.9)
        bands, rows = curator.bands()
        assert bands * rows <= 128
        assert 1 - (1 - threshold**rows) ** bands >= 0.9
    with pytest.raises(UsageError, match="cannot find pairs"):
        MinHash(threshold=0.01, permutations=16, recall=0.99)


def test_shingles_are_the_runs_of_words_and_characters() -> None:
    def runs_by_hand(parts: list[str], length: int) -> list[tuple[str, ...]]:
        length = max(1, min(length, len(parts)))
        return [tuple(parts[i : i + length]) for i in range(max(len(parts) - length + 1, 1))]

    texts = ["the cat and the cat and", "Cat, the", "", "\u4e2d \u6587\u4e2d\u6587"]
    for unit in ("word", "character"):
        seen: dict[int, Any] = {}
        for text in texts:
            plain = "".join(c if c.isalnum() else " " for c in text.lower()).split()
            parts = plain if unit == "word" else list("".join(text.lower().split()))
            found = shingles(text, 3, unit).tolist()
            expected = runs_by_hand(parts, 3)
            assert len(found) == len(expected)
            for digest, run in zip(found, expected, strict=True):
                assert seen.setdefault(digest, run) == run
    assert len(units("", "word")) == 0


def test_text_without_spaces_is_compared_by_its_characters(tmp_path: Path) -> None:
    generator = random.Random(2)
    base = "".join(chr(0x4E00 + generator.randrange(500)) for _ in range(400))
    texts = [
        base,
        base[:200] + "\u4e00" + base[200:],
        "".join(chr(0x4E00 + generator.randrange(500)) for _ in range(400)),
    ]
    column = MinHash(unit="character")(opened(texts, tmp_path), Account())
    assert column.kept.tolist() == [True, False, True]


# ---- rules


def commonest_by_hand(words: list[str], length: int) -> int:
    counted = Counter(tuple(words[i : i + length]) for i in range(len(words) - length + 1))
    times = max(counted.values(), default=0)
    return max((times * sum(map(len, run)) for run, n in counted.items() if n == times), default=0) if times > 1 else 0


def repeated_by_hand(words: list[str], length: int) -> int:
    marked: set[int] = set()
    for place in range(len(words) - length + 1):
        if any(words[earlier : earlier + length] == words[place : place + length] for earlier in range(place)):
            marked.update(range(place, place + length))
    return sum(len(words[place]) for place in marked)


@given(words=st.lists(st.sampled_from(["a", "bc", "def"]), max_size=30), length=st.integers(2, 5))
def test_repetition_is_counted_as_by_hand(words: list[str], length: int) -> None:
    known, sizes = digests(words), np.array([len(word) for word in words], dtype=np.int64)
    assert commonest(known, sizes, length) == commonest_by_hand(words, length)
    assert repeated(known, sizes, length) == repeated_by_hand(words, length)


def prose(words: int = 120) -> str:
    generator = random.Random(3)
    pieces = [generator.choice(["the", "of", "and", sentence(generator, 1)]) for _ in range(words)]
    return "\n".join(" ".join(pieces[start : start + 12]) for start in range(0, words, 12))


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("too few words", "only a few words"),
        ("mean length of words out of range", "the of a " * 60),
        ("too many # or ellipses a word", prose() + " #" * 30),
        ("too many lines that begin with a bullet", "\n".join("- " + line for line in prose(400).split("\n"))),
        ("too many lines that end with an ellipsis", "\n".join(line + "..." for line in prose(300).split("\n"))),
        ("too few words with a letter", prose() + " 12345" * 60),
        ("too few of the commonest English words", prose().replace("the", "xyz").replace("of", "abc").replace("and", "uvw")),
        ("too many lines that occurred before", prose() + "\n" + "\n".join([sentence(random.Random(4), 6)] * 20)),
        ("too much text in paragraphs that occurred before", prose() + "\n\n" + "\n\n".join([prose(30)] * 4) + "\n" + prose(10)),
        ("the commonest run of words makes up too much", prose() + " lorem ipsum" * 40),
        ("too much text in runs of words that occurred before", prose() + " " + " ".join(prose().split())),
    ],
)  # fmt: skip
def test_a_document_is_dropped_for_the_rule_that_it_breaks(reason: str, text: str) -> None:
    found = QualityRules().broken(text)
    rules = {"too much text in paragraphs that occurred before": {8, 10, 11}}  # they repeat lines as well
    assert found == REASONS.index(reason) or found in rules.get(reason, set())


def test_prose_is_kept_and_limits_are_options() -> None:
    assert QualityRules().broken(prose()) == KEPT
    assert REASONS[QualityRules(most_words=100).broken(prose())] == "too many words"
    assert QualityRules(repetition=0).broken(prose() + " lorem ipsum" * 40) == KEPT


# ---- all of them

TABLE: dict[str, dict[str, Any]] = {"exact_duplicates": {}, "minhash": {}, "quality_rules": {"least_words": 30}}


@pytest.mark.parametrize("name", TABLE)
def test_a_curator_says_something_of_each_document_and_always_the_same(name: str, tmp_path: Path) -> None:
    texts = [*alike(), prose(), prose(), "short"]
    made = find("data", name, "curation").target
    columns: list[Column] = [made(**TABLE[name])(opened(texts, tmp_path / str(turn)), Account()) for turn in range(2)]
    assert len(columns[0].dropped) == len(texts)
    assert 0 < columns[0].kept.sum() < len(texts)
    assert columns[0].dropped.tolist() == columns[1].dropped.tolist()
    for key, value in columns[0].values.items():
        assert np.array_equal(value, columns[1].values[key])
    empty = made(**TABLE[name])(opened(texts, tmp_path / "0").only(np.zeros(len(texts), bool)), Account())
    assert len(empty.dropped) == 0


@pytest.mark.parametrize("name", TABLE)
def test_unknown_options_are_refused(name: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        find("data", name, "curation").target(no_such_option=1)
