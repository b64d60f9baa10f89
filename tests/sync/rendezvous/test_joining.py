"""Which masters are on this machine alone, so that workers may meet there without a token."""

import socket

import pytest

from shoestring.sync.rendezvous import joining


@pytest.mark.parametrize(
    ("stands_for", "here"),
    [(["127.0.0.1"], True), (["127.0.1.1", "::1"], True), (["127.0.1.1", "192.0.2.7"], False), (["192.0.2.7"], False)],
)
def test_a_host_name_is_here_where_all_its_addresses_are(
    monkeypatch: pytest.MonkeyPatch, stands_for: list[str], here: bool
) -> None:
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0)) for each in stands_for]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: entries)
    assert bool(joining._loopback_interface("a-machine")) == here


def test_a_name_that_stands_for_nothing_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert joining._loopback_interface("no-such-machine") == ""


def test_what_cannot_be_a_name_is_not_here() -> None:
    assert joining._loopback_interface("a" * 70 + ".example") == ""
