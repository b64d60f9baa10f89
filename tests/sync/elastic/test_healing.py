"""Healing: the state comes as it was or not at all."""

import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_tensors
from torch import Tensor

from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.elastic.healing import Healing, pack, unpack
from shoestring.sync.rendezvous.admission import RunFingerprint
from shoestring.sync.rendezvous.handshake import Refused
from shoestring.sync.rendezvous.listener import Listener

TOKEN = "the token of this run"
FINGERPRINT = RunFingerprint(workers=0, recipe="r", model="m", data="d")


def state(seed: int = 0, size: int = 300) -> tuple[dict[str, Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, 7, generator=generator)
    tensors = {
        "matrix": matrix,
        "tied": matrix,
        "turned": matrix.T,
        "bfloat16": matrix[:2].bfloat16(),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "nothing": torch.zeros(0, 4),
        "number": torch.tensor([2**60]),
    }
    return tensors, {"step": 3, "nested": {"list": [1, 2.5, None, "x"]}}


def same(one: tuple[dict[str, Tensor], Any], other: tuple[dict[str, Tensor], Any]) -> bool:
    return one[1] == other[1] and all(
        torch.equal(one[0][name], other[0][name]) and one[0][name].dtype == other[0][name].dtype
        for name in one[0].keys() | other[0].keys()
    )


@pytest.fixture
def make() -> Iterator[Callable[..., Healing]]:
    made = []

    def new(token: str = TOKEN, fingerprint: RunFingerprint = FINGERPRINT, **options: Any) -> Healing:
        made.append(Healing(token=token, fingerprint=fingerprint, **options))
        return made[-1]

    yield new
    for each in made:
        each.close()


def test_what_is_packed_is_unpacked() -> None:
    assert same(unpack(pack(state())), state())


def test_a_state_comes_as_it_was_when_it_was_offered(make: Callable[..., Healing]) -> None:
    giver, taker = make(), make()
    tensors, values = state()
    giver.offer(5, (tensors, values), timeout=1)
    tensors["matrix"].zero_()
    values["step"] = 4
    for rank in (1, 2):
        assert same(taker.fetch(giver.address, 5, rank=rank, timeout=1), state())


def test_who_asks_early_waits(make: Callable[..., Healing]) -> None:
    giver, taker = make(), make()
    threading.Timer(0.3, giver.offer, (5, state()), {"timeout": 1}).start()
    assert same(taker.fetch(giver.address, 5, rank=0, timeout=5), state())


def test_no_other_step_is_given_and_none_after_the_round(make: Callable[..., Healing]) -> None:
    giver, taker = make(), make()
    giver.offer(5, state(), timeout=1)
    began = time.monotonic()
    with pytest.raises(ShoestringError, match=r"the state of step 6 did not come from 127\.0\.0\.1"):
        taker.fetch(giver.address, 6, rank=0, timeout=0.25)
    giver.withdraw()
    with pytest.raises(ShoestringError, match="did not come"):
        taker.fetch(giver.address, 5, rank=0, timeout=0.25)
    assert time.monotonic() - began < 2


def test_who_has_not_the_token_gets_nothing(make: Callable[..., Healing]) -> None:
    giver = make()
    giver.offer(5, state(), timeout=1)
    with pytest.raises(Refused, match="token"):
        make(token="another").fetch(giver.address, 5, rank=0, timeout=1)
    with pytest.raises(Refused, match="another model"):
        make(fingerprint=replace(FINGERPRINT, model="x")).fetch(giver.address, 5, rank=0, timeout=1)
    with pytest.raises(UsageError, match="token"):
        make(token="")


def test_a_state_over_the_limit_is_not_taken(make: Callable[..., Healing]) -> None:
    giver, taker = make(), make(limit=1000)
    giver.offer(5, state(), timeout=1)
    with pytest.raises(ShoestringError, match="at most 1000 are taken"):
        taker.fetch(giver.address, 5, rank=0, timeout=1)


@pytest.mark.parametrize("fault", ["altered", "cut", "stalled"])
def test_a_state_that_is_not_whole_is_not_taken(make: Callable[..., Healing], fault: str) -> None:
    giver, taker = make(), make()
    giver.offer(5, state(size=100_000), timeout=1)
    host, _, port = giver.address.rpartition(":")

    def between(link: socket.socket, _: None) -> None:
        with socket.create_connection((host, int(port))) as true:

            def upwards() -> None:
                while data := link.recv(4096):
                    true.sendall(data)

            threading.Thread(target=upwards, daemon=True).start()
            seen = 0
            while data := true.recv(4096):
                if seen < 1_000_000 <= seen + len(data):
                    if fault == "cut":
                        break
                    if fault == "stalled":
                        time.sleep(1)
                    data = bytes([data[0] ^ 1]) + data[1:]
                seen += len(data)
                link.sendall(data)
            link.shutdown(socket.SHUT_RDWR)

    proxy = Listener(("127.0.0.1", 0), lambda link: None, between, max_handshakes=4)
    try:
        with pytest.raises(ShoestringError, match=r"did not come from 127\.0\.0\.1"):
            taker.fetch(f"127.0.0.1:{proxy.address[1]}", 5, rank=0, timeout=0.5)
    finally:
        proxy.close()


class Trap:
    def __reduce__(self) -> Any:
        return pytest.fail, ("unpickled",)


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.just(pickle.dumps(Trap())),
        st.just(save_tensors({"a": torch.ones(3)})),
        st.just(save_tensors({"a": torch.ones(3)}, metadata={"values": "[1]"})),
        st.just(save_tensors({"a": torch.ones(3)}, metadata={"values": "[" * 5000})),
        st.integers(0, 400).map(lambda cut: bytes(pack(state(size=1)).tolist())[:cut]),
    )
)
def test_what_is_no_state_is_not_taken_for_one(garbage: bytes) -> None:
    if garbage:
        with pytest.raises(ShoestringError, match="no state"):
            unpack(torch.frombuffer(bytearray(garbage), dtype=torch.uint8))


def test_values_must_be_plain() -> None:
    for wrong in (object(), float("nan"), {1, 2}):
        with pytest.raises(ShoestringError, match="cannot be sent"):
            pack(({}, {"wrong": wrong}))
