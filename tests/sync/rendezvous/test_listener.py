"""The run's listener: whom it accepts, whom not and why, and that nobody's nonsense keeps it busy."""

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
from shoestring.sync.rendezvous.admission import RunFingerprint
from shoestring.sync.rendezvous.handshake import LINE, Malformed, Refused, accept_worker, connect_to_host, receive_line
from shoestring.sync.rendezvous.listener import Listener, RefusalLog, RunListener, ServiceTunnel
from shoestring.sync.transport.frame import derive_key

TOKEN = "the token of this run"
FINGERPRINT = RunFingerprint(
    workers=0, recipe="aaaa1111ffff", model="bbbb2222ffff", data="cccc3333ffff", version="1.2.3"
)
MAX_HANDSHAKES = 4
HANDSHAKE_TIMEOUT = 0.5


def echo(link: socket.socket, _: None) -> None:
    while data := link.recv(1 << 16):
        link.sendall(data)


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[str, int]]:
    listener = Listener(("127.0.0.1", 0), lambda link: None, echo, max_handshakes=64)
    yield listener.address
    listener.close()


@pytest.fixture(scope="module")
def run_listener(service: tuple[str, int]) -> Iterator[RunListener]:
    services = {"lighthouse": service, "store": service}
    with RunListener(
        token=TOKEN,
        fingerprint=FINGERPRINT,
        services=services,
        timeout=HANDSHAKE_TIMEOUT,
        max_handshakes=MAX_HANDSHAKES,
    ) as opened:
        yield opened


def connect(run_listener: RunListener) -> socket.socket:
    return socket.create_connection(run_listener.address, timeout=10)


def ask(run_listener: RunListener, token: str = TOKEN, fingerprint: RunFingerprint = FINGERPRINT) -> None:
    with ServiceTunnel(*run_listener.address, token, fingerprint, timeout=2) as tunnel:
        for address in (tunnel.lighthouse, tunnel.store):
            with socket.create_connection(address, timeout=10) as link:
                sent = bytes(range(256)) * 2000
                threading.Thread(target=link.sendall, args=(sent,)).start()
                received = b""
                while len(received) < len(sent):
                    received += link.recv(1 << 16)
                assert received == sent


def test_a_worker_of_the_run_comes_in(run_listener: RunListener) -> None:
    ask(run_listener)
    ask(run_listener, fingerprint=replace(FINGERPRINT, workers=7))


@pytest.mark.parametrize(
    ("token", "fingerprint", "line"),
    [
        ("another", FINGERPRINT, "its token is not the run's"),
        (
            TOKEN,
            replace(FINGERPRINT, version="0.9"),
            "the run is of shoestring 1.2.3, this worker of 0.9: all workers of a run need the same version",
        ),
        (
            TOKEN,
            replace(FINGERPRINT, recipe="dddd4444ffff"),
            "this worker trains by another recipe than the run (fingerprints dddd4444 and aaaa1111)",
        ),
        (
            TOKEN,
            replace(FINGERPRINT, model=""),
            "this worker has another model than the run (fingerprints none and bbbb2222)",
        ),
        (
            TOKEN,
            replace(FINGERPRINT, data="eeee5555ffff"),
            "this worker reads another corpus or tokenizer than the run (fingerprints eeee5555 and cccc3333)",
        ),
    ],
    ids=["token", "version", "recipe", "model", "data"],
)
def test_who_differs_is_refused_in_one_line(
    run_listener: RunListener, token: str, fingerprint: RunFingerprint, line: str
) -> None:
    with pytest.raises(Refused) as refused:
        ask(run_listener, token, fingerprint)
    assert str(refused.value) == f"refused at 127.0.0.1:{run_listener.address[1]}: {line}"
    assert refused.value.exit_status == 2


def test_a_listener_without_the_token_learns_nothing_and_is_not_believed(service: tuple[str, int]) -> None:
    services = {"lighthouse": service}
    with (
        RunListener(token="another", fingerprint=FINGERPRINT, services=services) as false,
        pytest.raises(Refused, match="token"),
    ):
        ask(false)


def test_without_a_token_there_is_no_listener() -> None:
    with pytest.raises(UsageError, match="token"):
        RunListener(token="", fingerprint=FINGERPRINT, services={})


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
                "fingerprint": st.just({"version": "\ud800", "recipe": "", "model": "", "data": ""})
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
            accept_worker(ours, derive_key(TOKEN), FINGERPRINT, timeout=1)


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
def test_garbage_ends_the_connection(run_listener: RunListener, garbage: bytes) -> None:
    with connect(run_listener) as link:
        began = time.monotonic()
        link.sendall(garbage)
        with contextlib.suppress(ConnectionResetError):
            while link.recv(1 << 16):
                pass
        assert time.monotonic() - began < HANDSHAKE_TIMEOUT + 1
    ask(run_listener)


def test_who_sends_byte_by_byte_has_no_more_time_than_others(run_listener: RunListener) -> None:
    with connect(run_listener) as link:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 5:
                link.sendall(b" ")
                time.sleep(0.05)
        assert time.monotonic() - began < HANDSHAKE_TIMEOUT + 1


def test_a_flood_of_silent_connections_is_bounded_and_passes(run_listener: RunListener) -> None:
    links = [connect(run_listener) for _ in range(MAX_HANDSHAKES + 8)]
    time.sleep(0.1)
    threads = [thread for thread in threading.enumerate() if thread.name == "shoestring-link"]
    assert len(threads) <= MAX_HANDSHAKES + 4  # those of the echoes of earlier tests may still be ending
    ask(run_listener)  # it connects again until there is room
    for link in links:
        link.close()


def test_a_proof_cannot_be_used_again(run_listener: RunListener) -> None:
    """What a worker said to one listener, sent to another: the nonce differs."""
    with socket.create_server(("127.0.0.1", 0)) as false:
        said = {}

        def listen() -> None:
            link, _ = false.accept()
            with link, connect(run_listener) as true:
                deadline = time.monotonic() + 2
                link.sendall(json.dumps(receive_line(true, deadline)).encode() + b"\n")
                said.update(receive_line(link, deadline))

        thread = threading.Thread(target=listen)
        thread.start()
        with pytest.raises(ShoestringError):
            connect_to_host(false.getsockname(), derive_key(TOKEN), FINGERPRINT, {"service": "store"}, timeout=0.4)
        thread.join()
    assert TOKEN not in json.dumps(said)
    with connect(run_listener) as link:
        deadline = time.monotonic() + 2
        receive_line(link, deadline)
        link.sendall(json.dumps(said).encode() + b"\n")
        assert "token" in receive_line(link, deadline)["refused"]


def test_what_is_no_listener_is_said_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet() -> None:
            link, _ = other.accept()
            with link:
                link.sendall(b"220 mail.example ready\n")

        threading.Thread(target=greet).start()
        with pytest.raises(Malformed, match=rf"no run answers at 127.0.0.1:{other.getsockname()[1]}"):
            host, port = other.getsockname()
            ServiceTunnel(host, port, TOKEN, FINGERPRINT)
    with pytest.raises(ShoestringError, match=re.escape("no connection to 127.0.0.1:")):
        ServiceTunnel(*other_address(), TOKEN, FINGERPRINT, timeout=0.3)


def other_address() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return closed.getsockname()


def test_a_listener_that_closes_ends_its_connections(service: tuple[str, int]) -> None:
    opened = RunListener(token=TOKEN, fingerprint=FINGERPRINT, services={"lighthouse": service, "store": service})
    with (
        ServiceTunnel(*opened.address, TOKEN, FINGERPRINT) as tunnel,
        socket.create_connection(tunnel.store, timeout=5) as link,
    ):
        link.sendall(b"a")
        assert link.recv(1) == b"a"
        opened.close()
        with contextlib.suppress(ConnectionResetError):
            assert link.recv(1) == b""


def test_forged_handshakes_are_a_few_lines_and_a_count(
    service: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    with RunListener(token=TOKEN, fingerprint=FINGERPRINT, services={"lighthouse": service}) as opened:
        for _ in range(40):
            with pytest.raises(Refused):
                connect_to_host(opened.address, derive_key("forged"), FINGERPRINT, {"service": "lighthouse"}, timeout=2)
        for thread in threading.enumerate():
            if thread.name == "shoestring-link":
                thread.join(5)
    lines = [record.message for record in caplog.records]
    assert lines == [
        *["a worker was refused: its token is not the run's"] * 5,
        "35 more workers were refused since, the last because its token is not the run's",
    ]


def test_each_window_of_the_log_begins_with_what_the_last_one_left_out(caplog: pytest.LogCaptureFixture) -> None:
    refusals = RefusalLog(lines=1, window=60)
    for now in (0, 10, 20, 59.9, 60, 200):
        refusals.add(f"at {now}", now)
    refusals.close()
    assert [record.message for record in caplog.records] == [
        "a worker was refused: at 0",
        "3 more workers were refused since, the last because at 59.9",
        "a worker was refused: at 60",
        "a worker was refused: at 200",
    ]
