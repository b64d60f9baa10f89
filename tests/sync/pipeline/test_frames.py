"""What goes over a link arrives bit for bit, or not at all."""

import socket
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.sync.pipeline.wire import DTYPES, Frame, Link, LinkClosed


def pair(one: bytes = b"key", other: bytes = b"key") -> tuple[Link, Link, socket.socket]:
    listening = socket.create_server(("127.0.0.1", 0))
    raw = socket.create_connection(listening.getsockname())
    accepted, _ = listening.accept()
    listening.close()
    return Link(raw, one), Link(accepted, other), raw


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3)),
        max_size=4,
    )
)
def test_a_frame_arrives_as_it_was_sent(described: dict[str, tuple[str, list[int]]]) -> None:
    tensors = {name: torch.randn(shape).mul(9).to(DTYPES[dtype]) for name, (dtype, shape) in described.items()}
    here, there, _ = pair()
    size = here.send(Frame("kind", 7, {"a": [1, 2.5, None, "ü"]}, tensors))
    got = there.receive()
    assert (got.kind, got.order, got.fields) == ("kind", 7, {"a": [1, 2.5, None, "ü"]})
    assert size > sum(tensor.nbytes for tensor in tensors.values())
    assert list(got.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert got.tensors[name].dtype == tensor.dtype
        assert torch.equal(got.tensors[name], tensor)
    here.close()
    with pytest.raises(LinkClosed):
        there.receive()
    there.close()


def sent_bytes(frame: Frame) -> bytearray:
    here, _, _ = pair()
    caught = bytearray()
    here._socket = type("Catch", (), {"sendall": lambda _, part: caught.extend(part)})()
    here.send(frame)
    return caught


@pytest.mark.parametrize("place", [0, 5, 20, 40, -1])
def test_a_frame_with_one_byte_changed_is_refused(place: int) -> None:
    content = sent_bytes(Frame("kind", 1, {}, {"x": torch.arange(10.0)}))
    content[place] ^= 1
    _, there, raw = pair()
    raw.sendall(content)
    raw.shutdown(socket.SHUT_WR)
    with pytest.raises(LinkClosed):
        there.receive()


def test_who_has_another_key_is_refused_and_a_cut_frame_is_none() -> None:
    here, there, _ = pair(other=b"another")
    here.send(Frame("hello"))
    with pytest.raises(LinkClosed, match="did not pass"):
        there.receive()
    _, there, raw = pair()
    raw.sendall(sent_bytes(Frame("kind", 1, {}, {"x": torch.zeros(100)}))[:-1])
    raw.close()
    with pytest.raises(LinkClosed):
        there.receive()


def test_frames_from_several_threads_do_not_mix() -> None:
    here, there, _ = pair()
    payload = torch.zeros(50_000)
    senders = [
        threading.Thread(target=lambda: [here.send(Frame("k", 1, {}, {"x": payload})) for _ in range(5)])
        for _ in range(4)
    ]
    for sender in senders:
        sender.start()
    assert all(there.receive().tensors["x"].numel() == 50_000 for _ in range(20))
    for sender in senders:
        sender.join()
