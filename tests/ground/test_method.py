import pytest

from shoestring.errors import UsageError
from shoestring.method import Positive, find, method, methods


def test_keyword_only_parameters_are_the_options_and_are_checked_whoever_calls() -> None:
    @method("schedule", name="for-this-test", claim="", cost="")
    def scaled(supplied: float, *, factor: Positive = 2.0) -> float:
        return supplied * factor

    assert set(find("schedule", "for-this-test").options().model_fields) == {"factor"}
    assert scaled(3.0) == 6.0
    assert scaled(3.0, factor=1) == 3.0
    with pytest.raises(ValueError, match="for-this-test: factor = -1"):
        scaled(3.0, factor=-1)


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="already has"):

        @method("optim", name="muon", claim="", cost="")
        def another() -> None: ...


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'muon'"):
        find("optim", "mun")


@pytest.mark.parametrize("card", methods(), ids=lambda card: f"{card.engine}-{card.name}")
def test_every_card_says_what_it_must(card) -> None:  # type: ignore[no-untyped-def]
    assert card.summary.endswith((".", "!"))
    assert card.claim or card.name == "for-this-test"
    assert card.cost or card.name == "for-this-test"
    card.options()


def test_a_name_that_is_no_module_is_found_among_all() -> None:
    assert find("data", "python-stdlib", "corpus").target.__name__ == "PythonStdlib"
    with pytest.raises(UsageError, match="no format method is named 'files'"):
        find("data", "files", "format")
