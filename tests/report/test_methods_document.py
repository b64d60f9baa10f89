from pathlib import Path

from shoestring.method import methods
from shoestring.report.methods_page import methods_page

ROOT = Path(__file__).parent.parent.parent


def test_the_committed_table_of_methods_is_what_cards_and_evidence_say() -> None:
    own = [card for card in methods() if card.target.__module__.startswith("shoestring.")]  # not those that tests made
    fresh = methods_page(own, ROOT / "evidence")
    assert (ROOT / "docs" / "methods.md").read_text() == fresh, "run `make docs`"
