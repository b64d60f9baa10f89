"""Text made by a model: what is asked and dropped, what it costs, and that a kill loses nothing that was written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from shoestring.budget.charge import Charge
from shoestring.config import Choice
from shoestring.contract.author import Authored, AuthoredText
from shoestring.data.config import TextOptions
from shoestring.data.corpus import open_corpus
from shoestring.data.curated_folder import read_card
from shoestring.data.curation.account import Account, OutOfTime
from shoestring.data.synthesis.methods.wrap import Wrap, passages, word_runs
from shoestring.data.synthesis.synthesise import GROUP, Instruction, synthesise, write_synthesised
from shoestring.errors import ShoestringError, UsageError
from shoestring.method import methods
from tests.data.curation.texts import opened

TABLE: dict[str, dict[str, Any]] = {
    "wrap": {"author": "made", "styles": ("easy", "questions"), "passage": 60, "shortest": 20}
}
ELSEWHERE = {"soft_srv"}
"""Methods that do not ask a model that answers: each has a test of its own beside this one."""

TEXTS = [f"document {number} says that {number * number} is a square and {number} is its root" for number in range(20)]


class Upper:
    """Answers the passage in capitals, its words the other way round; a FLOP a letter. dies_at: calls that it answers."""

    digest = "upper"

    def __init__(self, dies_at: int = 1000) -> None:
        self.calls, self.dies_at = 0, dies_at

    def answers(self, asked: Sequence[str], seeds: Sequence[int], tokens: int, temperature: float) -> Authored:
        self.calls += 1
        if self.calls > self.dies_at:
            raise OutOfTime("stopped")
        texts = [" ".join(reversed(text.rpartition("\n\n")[2].split())).upper() for text in asked]
        found = tuple(AuthoredText(f"{text} {seed % 997}", True) for text, seed in zip(texts, seeds, strict=True))
        return Authored(found, Charge(flops=sum(map(len, asked)), calls=len(asked)))


def account(author: Upper) -> Account:
    return Account(open_author=lambda place: author)


def made(name: str, **more: Any) -> Choice:
    return Choice.of("data", name, kind="synthesis", **{**TABLE[name], **more})


def test_every_method_is_here() -> None:
    assert {card.name for card in methods("data", "synthesis")} == set(TABLE) | ELSEWHERE


@pytest.mark.parametrize("name", TABLE)
def test_each_text_has_its_seed_and_all_is_charged(name: str, tmp_path: Path) -> None:
    author = Upper()
    books = account(author)
    found = synthesise(opened(TEXTS, tmp_path), made(name), books, tmp_path)
    rows = list(found.rows())
    assert len(rows) == found.kept > len(TEXTS)
    for row in rows:
        assert row["seed_text"] in TEXTS[row["number"]]
        assert row["text"].startswith(row["seed_text"].split()[-1].upper())
    assert books.spent.as_dict() == found.spent
    assert found.spent["calls"] == found.kept + sum(found.dropped.values())


@pytest.mark.parametrize("name", TABLE)
def test_what_was_made_before_a_kill_is_not_made_again(name: str, tmp_path: Path) -> None:
    whole = list(synthesise(opened(TEXTS, tmp_path / "a"), made(name), account(Upper()), tmp_path / "a").rows())
    killed = Upper(dies_at=1)
    with pytest.raises(OutOfTime):
        synthesise(opened(TEXTS, tmp_path / "b"), made(name), account(killed), tmp_path / "b")
    after = Upper()
    books = account(after)
    found = synthesise(opened(TEXTS, tmp_path / "b"), made(name), books, tmp_path / "b")
    assert list(found.rows()) == whole
    assert after.calls == -(-len(TEXTS) // GROUP) - 1
    assert found.spent["flops"] > books.spent.flops > 0  # what was spent before the kill is told too
    other = synthesise(opened(TEXTS, tmp_path / "b"), made(name, seed=7), account(Upper()), tmp_path / "b")
    assert list(other.rows()) != whole


def test_what_was_made_is_a_corpus(tmp_path: Path) -> None:
    found = synthesise(opened(TEXTS, tmp_path), made("wrap"), account(Upper()), tmp_path)
    write_synthesised(found, tmp_path / "out", {"corpus": "somewhere"})
    assert list(open_corpus(str(tmp_path / "out"), TextOptions()).documents()) == [row["text"] for row in found.rows()]
    card = read_card(tmp_path / "out")
    assert card is not None
    assert card["synthesised"]["texts"] == found.kept
    found.parts[0].write_text("{")
    with pytest.raises(ShoestringError, match="delete it"):
        list(found.rows())


def test_a_text_is_cut_at_lines_and_long_lines_anywhere() -> None:
    assert passages("one\ntwo\n\nthree four five", 10) == ["one\ntwo", "three four", "five"]
    text = "\n".join("line " * (number % 7) for number in range(40))
    pieces = passages(text, 50)
    assert max(map(len, pieces)) <= 50
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_answers_are_dropped_for_a_reason() -> None:
    wrap = Wrap(author="made", least=0.5, copied=0.5)
    seed = "the quick brown fox jumps over the lazy dog and runs away"
    told = Instruction("", seed, "easy")
    assert wrap.fault(told, AuthoredText("a fox that is brown leaps over some dog", True)) == ""
    assert wrap.fault(told, AuthoredText("a fox that is brown leaps over some dog", False)) == "cut off"
    assert wrap.fault(told, AuthoredText("a fox", True)) == "too short"
    assert wrap.fault(told, AuthoredText("The quick brown fox jumps over the lazy dog", True)) == "repeats its passage"
    assert word_runs("A b c D e f") == {("a", "b", "c", "d", "e"), ("b", "c", "d", "e", "f")}


@pytest.mark.parametrize(
    ("options", "said"),
    [({"styles": ()}, "name one at least"), ({"styles": ("easy", "easy")}, "each once"), ({"copied": 2}, "copied")],
)
def test_options_are_checked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        made("wrap", **options).build()


def test_an_account_without_authors_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="opens none"):
        synthesise(opened(TEXTS, tmp_path), made("wrap"), Account(), tmp_path)
