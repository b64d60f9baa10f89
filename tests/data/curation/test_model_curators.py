"""Curators that ask a model, learn a scorer or compare with other text: what they keep, what they are charged."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoestring.config import Choice
from shoestring.data.curation.account import Account
from shoestring.data.curation.curate import curate
from shoestring.data.curation.curators.cluster_filter import ClusterFilter
from shoestring.data.curation.curators.data_filtering_network import DataFilteringNetwork
from shoestring.data.curation.curators.decontamination import Decontamination
from shoestring.data.curation.curators.difference_sampling import DifferenceSampling
from shoestring.data.curation.curators.document_selection import QUESTION, DocumentSelection
from shoestring.data.curation.curators.perplexity_bands import PerplexityBands
from shoestring.data.curation.meta_domains import MetaDomains
from shoestring.data.curation.ranking import beyond
from shoestring.errors import UsageError
from tests.data.curation.scorers import ByRule, account
from tests.data.curation.texts import opened, sentence

KINDS = {
    "river": "water stream bank fish flow",
    "tax": "income rate filing deduction form",
    "code": "def return class import self",
}


def of_kind(kind: str, seed: int, words: int = 40) -> str:
    generator = random.Random(seed)
    return " ".join(generator.choice(KINDS[kind].split()) for _ in range(words))


def test_the_best_hold_the_share_that_is_kept() -> None:
    scores, sizes = np.array([1.0, 3.0, 2.0, 3.0]), np.array([10, 10, 10, 10])
    assert beyond(scores, sizes, 0.5).tolist() == [True, False, True, False]
    assert beyond(scores, sizes, 0.51).tolist() == [True, False, False, False]
    assert beyond(scores, np.array([1, 1, 1, 97]), 0.5).tolist() == [True, False, True, False]
    assert beyond(scores, sizes, 0.0).all()


def test_text_of_the_test_set_is_found_by_its_runs_of_words(tmp_path: Path) -> None:
    generator = random.Random(0)
    leaked, short = sentence(generator, 20), "too short"
    test_set = tmp_path / "test.jsonl"
    test_set.write_text("".join(json.dumps({"question": text}) + "\n" for text in (leaked, short)))
    texts = [
        sentence(generator, 50),
        f"{sentence(generator, 20)} {leaked.upper()}! {sentence(generator, 20)}",
        " ".join(leaked.split()[:12]) + " " + sentence(generator, 20),
        f"{sentence(generator, 5)} {' '.join(leaked.split()[3:17])}, {sentence(generator, 5)}",
        "short",
    ]
    made = Decontamination(against=str(test_set), text_field="question")
    column = made(opened(texts, tmp_path), Account())
    assert column.values["hits"].tolist() == [0, 8, 0, 2, 0]
    assert column.kept.tolist() == [True, False, True, False, True]
    assert column.notes == ["1 items of the test set have fewer than 13 words, and were not looked for"]
    assert Decontamination(against=str(test_set), text_field="question", hits=3)(
        opened(texts, tmp_path), Account()
    ).kept.tolist() == [True, False, True, True, True]
    with pytest.raises(UsageError, match="a lower ngram"):
        Decontamination(against=str(test_set), text_field="question", ngram=30)(opened(texts, tmp_path), Account())


def test_bands_of_perplexity_are_quantiles_and_the_model_is_paid(tmp_path: Path) -> None:
    texts = [f"a b c {number}" for number in range(8)]
    scorer = ByRule("m", lambda text: float(text.split()[-1]) * 4)
    paid = account(m=scorer)
    column = PerplexityBands(model="m", lowest=0.25, highest=0.8)(opened(texts, tmp_path), paid)
    nats = np.arange(8.0)
    low, high = np.quantile(nats, [0.25, 0.8])
    assert column.kept.tolist() == [bool(low <= each <= high) for each in nats]
    assert column.values["perplexity"].tolist() == pytest.approx(np.exp(nats).tolist())
    assert [column.reasons[place] for place in column.dropped[[0, 7]]] == [
        "perplexity below the band",
        "perplexity above the band",
    ]
    assert paid.spent.flops == 10 * 4 * 8
    again = account(m=scorer)
    PerplexityBands(model="m")(opened(texts, tmp_path), again)
    assert again.spent.flops == 0  # scored before
    with pytest.raises(UsageError, match="leaves nothing"):
        PerplexityBands(model="m", lowest=0.5, highest=0.5)
    with pytest.raises(UsageError, match="this account opens none"):
        PerplexityBands(model="m")(opened(texts, tmp_path), Account())


def test_difference_sampling_keeps_what_the_teacher_alone_finds_likely(tmp_path: Path) -> None:
    texts = ["easy " * 4, "noise " * 4, "hard!" * 4, "long " * 40]
    teacher = {"e": 1.0, "n": 9.0, "h": 2.0, "l": 10.0}
    reference = {"e": 1.2, "n": 9.1, "h": 6.0, "l": 20.0}
    paid = account(t=ByRule("t", lambda text: teacher[text[0]]), r=ByRule("r", lambda text: reference[text[0]]))
    column = DifferenceSampling(teacher="t", reference="r", keep=0.05)(opened(texts, tmp_path), paid)
    sizes = [len(text) for text in texts]
    expected = [(reference[text[0]] - teacher[text[0]]) / size for text, size in zip(texts, sizes, strict=True)]
    assert column.values["difference"].tolist() == pytest.approx(expected)
    assert column.kept.tolist() == [False, False, True, False]
    assert paid.spent.flops == 2 * 10 * sum(len(text.split()) for text in texts)


def test_grades_of_a_sample_are_learnt_and_said_of_the_rest(tmp_path: Path) -> None:
    texts = [of_kind("river" if number % 4 == 0 else "tax", number) for number in range(200)]

    def answers(text: str) -> float:
        document, _, answer = text.rpartition("\n\n" + QUESTION)
        assert answer in (" yes", " no")
        good = "water" in document
        return 1.0 if good == (answer == " yes") else 3.0

    scorer = ByRule("g", answers)
    paid = account(g=scorer)
    made = DocumentSelection(grader="g", sample=60, keep=0.25, characters=100)
    column = made(opened(texts, tmp_path), paid)
    wanted = [number % 4 == 0 for number in range(200)]
    assert np.mean(column.kept == np.array(wanted)) > 0.95
    assert len(scorer.asked) == 2 * 60
    assert all(len(text) <= 100 + len(QUESTION) + 8 for text in scorer.asked)
    assert paid.spent.flops > 0
    assert "with a correlation of 0." in column.notes[0]


def test_what_is_like_trusted_text_is_kept(tmp_path: Path) -> None:
    trusted = tmp_path / "trusted.jsonl"
    trusted.write_text("".join(json.dumps({"text": of_kind("code", 1000 + number)}) + "\n" for number in range(30)))
    kinds = ["code" if number % 5 == 0 else ("tax" if number % 2 else "river") for number in range(150)]
    texts = [of_kind(kind, number) for number, kind in enumerate(kinds)]
    column = DataFilteringNetwork(trusted=str(trusted), keep=0.15)(opened(texts, tmp_path), Account())
    assert {kind for kind, kept in zip(kinds, column.kept, strict=True) if kept} == {"code"}
    again = DataFilteringNetwork(trusted=str(trusted), keep=0.15)(opened(texts, tmp_path / "b"), Account())
    assert again.values["trusted"].tolist() == column.values["trusted"].tolist()


def test_clusters_are_the_kinds_and_can_be_left_out(tmp_path: Path) -> None:
    kinds = [list(KINDS)[number % 3] for number in range(120)]
    texts = [of_kind(kind, number) for number, kind in enumerate(kinds)]
    documents = opened(texts, tmp_path)
    first = ClusterFilter(clusters=3, dimensions=8)(documents, Account())
    assert first.kept.all()
    clusters = first.values["cluster"]
    names = {kind: set(clusters[[k == kind for k in kinds]].tolist()) for kind in KINDS}
    assert all(len(found) == 1 for found in names.values())
    assert len(first.notes) == 3
    tax = names["tax"].pop()
    assert any(f"cluster {tax}, 40 documents: " in line for line in first.notes)
    column = ClusterFilter(clusters=3, dimensions=8, drop=(tax,), most=10)(documents, Account())
    kept = [kind for kind, keep in zip(kinds, column.kept, strict=True) if keep]
    assert sorted(kept) == ["code"] * 10 + ["river"] * 10
    with pytest.raises(UsageError, match="numbered from 0 to 2"):
        ClusterFilter(clusters=3, drop=(3,))


def test_a_data_set_is_the_mean_of_its_documents_kinds() -> None:
    texts = [of_kind(list(KINDS)[number % 3], number) for number in range(90)]
    found = MetaDomains.found(texts, clusters=3, dimensions=8, seed=0)
    shares = found.shares(texts)
    assert shares.sum(axis=1) == pytest.approx(np.ones(90))
    lengths = np.array([len(text) for text in texts])
    assert found.vector(texts) == pytest.approx((lengths / lengths.sum()) @ shares)
    tax = found.vector([of_kind("tax", 500)])
    assert tax.max() > 0.9


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("decontamination", {"against": "TEST", "ngram": 3}),
        ("perplexity_bands", {"model": "m"}),
        ("difference_sampling", {"teacher": "m", "reference": "n"}),
        ("document_selection", {"grader": "m"}),
        ("data_filtering_network", {"trusted": "TEST"}),
        ("cluster_filter", {"clusters": 3, "drop": [0]}),
    ],
)
def test_each_works_after_another_and_on_nothing(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    test_set = tmp_path / "test.txt"
    test_set.write_text(of_kind("tax", 7, words=30))
    options = {key: str(test_set) if value == "TEST" else value for key, value in options.items()}
    paid = account(m=ByRule("m", lambda text: 3.0 + len(text) % 7), n=ByRule("n", lambda text: 4.0 + len(text) % 5))
    texts = [*(of_kind(list(KINDS)[number % 3], number) for number in range(30)), "two words"]
    steps = [Choice.of("data", "quality_rules", kind="curation", least_words=5, stop_words=0, repetition=0)]
    steps.append(Choice.of("data", name, kind="curation", **options))
    curated = curate(opened(texts, tmp_path), steps, paid)
    assert not curated.kept[-1]
    assert curated.reasons[curated.reason[-1]] == "quality_rules: too few words"
    assert 0 < curated.kept.sum() < 30
    assert all(len(values) == 31 for values in curated.values.values())
    assert curated.steps[1].seen.documents == 30
    none = opened(texts, tmp_path).only(np.zeros(31, dtype=bool))
    assert len(Choice.of("data", name, kind="curation", **options).build()(none, paid).dropped) == 0
