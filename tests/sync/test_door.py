"""The door: whom it lets in, whom not and why, and that nobody's nonsense keeps it busy."""

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.admission import Passport
from shoestring.sync.door import Door, Entry, Listener
from shoestring.sync.frame import derive_key
from shoestring.sync.handshake import LINE, Malformed, Refused, admit, enter, hear

TOKEN = "the token of this run"
PASSPORT = Passport(workers=0, recipe="aaaa1111ffff", model="bbbb2222ffff", data="cccc3333ffff", version="1.2.3")
STRANGERS = 4
PATIENCE = 0.5


def echo(link: socket.socket, _: None) -> None:
    while data := link.recv(1 << 16):
        link.sendall(data)


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[str, int]]:
    listener = Listener(("127.0.0.1", 0), lambda link: None, echo, strangers=64)
    yield listener.address
    listener.close()


@pytest.fixture(scope="module")
def door(service: tuple[str, int]) -> Iterator[Door]:
    services = {"lighthouse": service, "store": service}
    with Door(token=TOKEN, passport=PASSPORT, services=services, patience=PATIENCE, strangers=STRANGERS) as opened:
        yield opened


def connect(door: Door) -> socket.socket:
    return socket.create_connection(door.address, timeout=10)


def ask(door: Door, token: str = TOKEN, passport: Passport = PASSPORT) -> None:
    with Entry(*door.address, token, passport, patience=2) as entry:
        for address in (entry.lighthouse, entry.store):
            with socket.create_connection(address, timeout=10) as link:
                sent = bytes(range(256)) * 2000
                threading.Thread(target=link.sendall, args=(sent,)).start()
                received = b""
                while len(received) < len(sent):
                    received += link.recv(1 << 16)
                assert received == sent


def test_a_worker_of_the_run_comes_in(door: Door) -> None:
    ask(door)
    ask(door, passport=replace(PASSPORT, workers=7))


@pytest.mark.parametrize(
    ("token", "passport", "line"),
    [
        ("another", PASSPORT, "its token is not the run's"),
        (
            TOKEN,
            replace(PASSPORT, version="0.9"),
            "the run is of shoestring 1.2.3, this worker of 0.9: all workers of a run need the same version",
        ),
        (
            TOKEN,
            replace(PASSPORT, recipe="dddd4444ffff"),
            "this worker trains by another recipe than the run (fingerprints dddd4444 and aaaa1111)",
        ),
        (
            TOKEN,
            replace(PASSPORT, model=""),
            "this worker has another model than the run (fingerprints none and bbbb2222)",
        ),
        (
            TOKEN,
            replace(PASSPORT, data="eeee5555ffff"),
            "this worker reads another corpus or tokenizer than the run (fingerprints eeee5555 and cccc3333)",
        ),
    ],
    ids=["token", "version", "recipe", "model", "data"],
)
def test_who_differs_is_refused_in_one_line(door: Door, token: str, passport: Passport, line: str) -> None:
    with pytest.raises(Refused) as refused:
        ask(door, token, passport)
    assert str(refused.value) == f"refused at 127.0.0.1:{door.address[1]}: {line}"
    assert refused.value.exit_status == 2


def test_a_door_without_the_token_learns_nothing_and_is_not_believed(service: tuple[str, int]) -> None:
    services = {"lighthouse": service}
    with Door(token="another", passport=PASSPORT, services=services) as false, pytest.raises(Refused, match="token"):
        ask(false)


def test_without_a_token_there_is_no_door() -> None:
    with pytest.raises(UsageError, match="token"):
        Door(token="", passport=PASSPORT, services={})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=300),
        st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda each: st.lists(each, max_size=3)).map(
            lambda each: json.dumps(each).encode() + b"\n"
        ),
        st.fixed_dictionaries(
            {
                "nonce": st.text(max_size=5) | st.just("00"),
                "passport": st.just({"version": "\ud800", "recipe": "", "model": "", "data": ""})
                | st.just({"a": [[]]}),
                "request": st.just({"service": "lighthouse"}) | st.just([1]) | st.just({"service": [1]}),
                "proof": st.text(max_size=5) | st.integers(),
            }
        ).map(lambda each: json.dumps(each).encode() + b"\n"),
    )
)
def test_garbage_gets_nothing(garbage: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(garbage)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises((ShoestringError, OSError)):
            admit(ours, derive_key(TOKEN), PASSPORT, patience=1)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"[" * LINE,
        b"x" * (LINE + 1),
        b"\x80\x04\x95." * 9,
        b'{"nonce": ' + b"9" * 4000 + b"}\n",
    ],
)
def test_a_stranger_is_hung_up_on(door: Door, garbage: bytes) -> None:
    with connect(door) as link:
        began = time.monotonic()
        link.sendall(garbage)
        with contextlib.suppress(ConnectionResetError):
            while link.recv(1 << 16):
                pass
        assert time.monotonic() - began < PATIENCE + 1
    ask(door)


def test_who_sends_byte_by_byte_has_no_more_time_than_others(door: Door) -> None:
    with connect(door) as link:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 5:
                link.sendall(b" ")
                time.sleep(0.05)
        assert time.monotonic() - began < PATIENCE + 1


def test_a_flood_of_silent_strangers_is_bounded_and_passes(door: Door) -> None:
    links = [connect(door) for _ in range(STRANGERS + 8)]
    time.sleep(0.1)
    threads = [thread for thread in threading.enumerate() if thread.name == "shoestring-link"]
    assert len(threads) <= STRANGERS + 4  # those of the echoes of earlier tests may still be ending
    ask(door)  # it knocks again until there is room
    for link in links:
        link.close()


def test_a_proof_cannot_be_used_again(door: Door) -> None:
    """What a worker said to one door, sent to another: the nonce differs."""
    with socket.create_server(("127.0.0.1", 0)) as false:
        said = {}

        def listen() -> None:
            link, _ = false.accept()
            with link, connect(door) as true:
                deadline = time.monotonic() + 2
                link.sendall(json.dumps(hear(true, deadline)).encode() + b"\n")
                said.update(hear(link, deadline))

        thread = threading.Thread(target=listen)
        thread.start()
        with pytest.raises(ShoestringError):
            enter(false.getsockname(), derive_key(TOKEN), PASSPORT, {"service": "store"}, patience=0.4)
        thread.join()
    assert TOKEN not in json.dumps(said)
    with connect(door) as link:
        deadline = time.monotonic() + 2
        hear(link, deadline)
        link.sendall(json.dumps(said).encode() + b"\n")
        assert "token" in hear(link, deadline)["refused"]


def test_what_is_no_door_is_said_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet() -> None:
            link, _ = other.accept()
            with link:
                link.sendall(b"220 mail.example ready\n")

        threading.Thread(target=greet).start()
        with pytest.raises(Malformed, match=rf"127.0.0.1:{other.getsockname()[1]} is not a run's"):
            Entry(*other.getsockname(), TOKEN, PASSPORT)  # type: ignore[arg-type, call-arg]
    with pytest.raises(ShoestringError, match=re.escape("no way in at 127.0.0.1:")):
        Entry(*other_address(), TOKEN, PASSPORT, patience=0.3)


def other_address() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return closed.getsockname()


def test_a_door_that_closes_hangs_up(service: tuple[str, int]) -> None:
    opened = Door(token=TOKEN, passport=PASSPORT, services={"lighthouse": service, "store": service})
    with Entry(*opened.address, TOKEN, PASSPORT) as entry, socket.create_connection(entry.store, timeout=5) as link:
        link.sendall(b"a")
        assert link.recv(1) == b"a"
        opened.close()
        with contextlib.suppress(ConnectionResetError):
            assert link.recv(1) == b""
