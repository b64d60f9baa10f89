"""Every optimiser is imported from the package by its class's name, which alone loads them."""

import pytest

import shoestring.optim
from shoestring.method import methods
from shoestring.optim.partition import partition


def test_every_optimiser_is_reached_by_its_class_name() -> None:
    for card in methods("optim"):
        assert getattr(shoestring.optim, card.target.__name__) is card.target
        assert card.target.__name__ in dir(shoestring.optim)
    assert shoestring.optim.partition is partition


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"^no optimiser is named 'Moun': did you mean 'Muon'\?$"):
        shoestring.optim.Moun  # noqa: B018
    with pytest.raises(ImportError):
        from shoestring.optim import Moun  # noqa: F401


def test_a_submodule_is_found_without_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shoestring.optim, "methods", lambda engine: pytest.fail("the registry was loaded"))
    monkeypatch.delattr(shoestring.optim, "muon", raising=False)
    with pytest.raises(AttributeError):
        shoestring.optim.muon  # noqa: B018
