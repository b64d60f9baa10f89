"""What the package says, on the screen of a command: indented, once, and only as long as the command goes on."""

import logging

import pytest

from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.log_lines import held_back

ROOM = logging.getLogger("shoestring.data.prepare")


def test_lines_are_shown_once_and_end_with_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with shown_on(Screen()) as shown:
            ROOM.info("reading [bold]text[/bold]")
            logging.getLogger("shoestring.compare.conduct").info("seed 0")
            ROOM.debug("too much")
    assert shown == ["reading [bold]text[/bold]", "seed 0"]
    assert capsys.readouterr() == ("  reading [bold]text[/bold]\nseed 0\n" * 2, "")
    ROOM.info("nobody listens")
    assert capsys.readouterr() == ("", "")
    assert not logging.getLogger("shoestring").handlers


def test_nothing_comes_between_json(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_on(Screen(stderr=True), before="note: "):
        ROOM.warning("cut")
    assert capsys.readouterr() == ("", "note: cut\n")


def test_one_room_can_be_held_back(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_on(Screen()) as shown:
        with held_back("shoestring.data") as kept:
            ROOM.warning("twice")
            logging.getLogger("shoestring.train.session").info("once")
        ROOM.warning("again")
    assert (kept, shown) == (["twice"], ["once", "again"])
    assert capsys.readouterr().out == "  once\n  again\n"


def test_a_room_can_be_silenced_by_its_name(said: list[str]) -> None:
    room = logging.getLogger("shoestring.data")
    room.setLevel(logging.ERROR)
    try:
        ROOM.warning("left out")
    finally:
        room.setLevel(logging.NOTSET)
    ROOM.warning("heard")
    assert said == ["heard"]
