"""`shoestring methods NAME`: a card with its options, for people and as JSON."""

import json

import pytest

from shoestring.cli.main import main
from shoestring.method import methods


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["methods", *words]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_card_of_a_method_has_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    card = shown(capsys, "diloco")
    assert "sync / outer loop diloco" in card
    assert "every whole number >= 1, default 30 inner steps between two exchanges of a fragment" in card
    assert "codec a codec by name, default float32" in card
    assert "average auto or gather or scatter, default auto" in card
    assert "average_codec a codec by name or none, default none" in card
    assert "shoestring.sync.outer_loops.diloco" in card
    assert "muloco" not in card
    assert "points table of factors, seconds, flops, tokens, needed" in shown(capsys, "refined")
    assert "options: none" in shown(capsys, "swiglu")


def test_a_list_has_no_options_and_a_name_may_be_of_several(capsys: pytest.CaptureFixture[str]) -> None:
    assert "options:" not in shown(capsys, "schedule")
    assert shown(capsys, "none").count("options:") == len([card for card in methods() if card.name == "none"]) > 1


def test_an_unknown_name_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for name, said in (("muoon", "did you mean 'muon'"), ("qqqq", "lists them all")):
        assert main(["methods", name]) == 2
        assert said in capsys.readouterr().err


def test_all_cards_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    cards = json.loads(capsys.readouterr().out)
    assert len(cards) == len(methods())
    (muon,) = (card for card in cards if card["name"] == "muon")
    (steps,) = (option for option in muon["options"] if option["name"] == "steps")
    assert (steps["default"], steps["values"]) == (5, "whole number >= 1 and <= 1000")
