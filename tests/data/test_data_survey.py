"""The split and the sample: decided by content alone."""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.data.survey import Survey, digest, survey

documents = st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=30)
share = st.floats(0.001, 0.5)


def heldout(found: list[str], of: Survey) -> set[str]:
    return {document for document in found if of.holds_out(digest(document))}


@settings(deadline=None)
@given(documents=documents, share=share)
def test_both_sides_have_a_document_and_copies_stay_together(documents: list[str], share: float) -> None:
    held = heldout(documents, survey(documents, share, 0))
    distinct = set(documents)
    if len(distinct) == 1:
        assert not held  # a lone document is for training
    else:
        assert 0 < len(held) < len(distinct)
    held_twice = heldout(documents, survey(documents * 2, share, 0))
    assert held_twice == held


@settings(deadline=None)
@given(order=st.permutations([f"document {n}" for n in range(40)]), extra=documents)
def test_order_and_additions_move_no_document(order: list[str], extra: list[str]) -> None:
    plain = [f"document {n}" for n in range(40)]
    held = heldout(plain, survey(plain, 0.3, 0))
    assert heldout(plain, survey(order, 0.3, 0)) == held
    assert heldout(plain, survey(order + extra, 0.3, 0)) == held


def test_the_share_is_met() -> None:
    many = [f"document {n}" for n in range(20_000)]
    for share in (0.02, 0.5):
        held = len(heldout(many, survey(many, share, 0))) / len(many)
        assert abs(held - share) < 4 * (share * (1 - share) / len(many)) ** 0.5


def share_of(found: list[str], of: Survey) -> float:
    held = sum(len(document) for document in found if of.holds_out(digest(document)))
    assert of.heldout_bytes == held
    return held / sum(map(len, found))


@pytest.mark.parametrize("counted", [1 << 16, 256])
@pytest.mark.parametrize("heavy", range(8))
def test_the_share_is_met_where_a_document_is_repeated(
    monkeypatch: pytest.MonkeyPatch, counted: int, heavy: int
) -> None:
    monkeypatch.setattr("shoestring.data.survey.COUNTED", counted)
    found = [f"document {n}" for n in range(1000)] + [f"heavy {heavy}"] * 500  # a third of the whole
    chosen = survey(found, 0.02, 0)
    assert 0.01 < share_of(found, chosen) < 0.04
    assert chosen.distinct == (1001 if counted > 1001 else None)


@pytest.mark.parametrize("heavy", range(4))
def test_the_share_is_met_where_one_document_is_long(heavy: int) -> None:
    found = [f"document {n}" for n in range(500)] + [f"long {heavy} " * 5000]
    assert 0 < share_of(found, survey(found, 0.02, 0)) < 0.04


def test_of_few_documents_the_lightest_is_held_out_where_all_are_too_heavy() -> None:
    found = ["a" * 400, "b" * 300, "c" * 20] * 7
    assert heldout(found, survey(found, 0.002, 0)) == {"c" * 20}
    assert heldout(found[:2], survey(found[:2], 0.02, 0)) == {"b" * 300}
    assert not heldout(["a"] * 9, survey(["a"] * 9, 0.02, 0))


def test_content_tells_order_and_bounds() -> None:
    contents = [survey(found, 0.1, 0).content for found in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", "b"])]
    assert len(set(contents)) == 4
    assert survey(["é", "b"], 0.1, 0).bytes == 3


@settings(deadline=None)
@given(order=st.permutations([str(n) * 20 for n in range(30)]), size=st.integers(8, 2000))
def test_the_sample_is_of_training_documents_and_ignores_order_and_copies(order: list[str], size: int) -> None:
    plain = sorted(order)
    sample = survey(plain, 0.2, size).sample
    assert survey(order + plain, 0.2, size).sample == sample
    found = survey(plain, 0.2, size)
    beginnings = {document[: size // 8] for document in plain if not found.holds_out(digest(document))}
    assert set(sample) <= beginnings
    assert sum(map(len, sample)) <= size + size // 8


def test_a_sample_takes_no_more_memory_than_itself() -> None:
    tracemalloc.start()
    try:
        found = survey((f"{n} " * 50_000 for n in range(300)), 0.02, 1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.bytes > 50_000_000
    assert sum(map(len, found.sample)) > 900_000
    assert peak < 5_000_000
