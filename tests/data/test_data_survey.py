"""The split and the sample: decided by content alone."""

import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.data.survey import digest, position, survey

documents = st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=30)
share = st.floats(0.001, 0.5)


def heldout(found: list[str], cut: int) -> set[str]:
    return {document for document in found if position(digest(document)) <= cut}


@settings(deadline=None)
@given(documents=documents, share=share)
def test_both_sides_have_a_document_and_copies_stay_together(documents: list[str], share: float) -> None:
    held = heldout(documents, survey(documents, share, 0).cut)
    distinct = set(documents)
    if len(distinct) == 1:
        assert not held  # a lone document is for training
    else:
        assert 0 < len(held) < len(distinct)
    held_twice = heldout(documents, survey(documents * 2, share, 0).cut)
    assert held_twice == held


@settings(deadline=None)
@given(order=st.permutations([f"document {n}" for n in range(40)]), extra=documents)
def test_order_and_additions_move_no_document(order: list[str], extra: list[str]) -> None:
    plain = [f"document {n}" for n in range(40)]
    held = heldout(plain, survey(plain, 0.3, 0).cut)
    assert heldout(plain, survey(order, 0.3, 0).cut) == held
    assert heldout(plain, survey(order + extra, 0.3, 0).cut) == held


def test_the_share_is_met() -> None:
    many = [f"document {n}" for n in range(20_000)]
    for share in (0.02, 0.5):
        held = len(heldout(many, survey(many, share, 0).cut)) / len(many)
        assert abs(held - share) < 4 * (share * (1 - share) / len(many)) ** 0.5


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
    cut = survey(plain, 0.2, size).cut
    beginnings = {document[: size // 8] for document in plain if position(digest(document)) > cut}
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
