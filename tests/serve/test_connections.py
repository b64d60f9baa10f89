"""Connections of slow clients are cut; the command says in one line what is wrong."""

import asyncio
import importlib.util
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from shoestring.errors import ShoestringError
from shoestring.serve.connections import Connection
from shoestring.serve.server import listen
from shoestring.serve.server import serve as serve_until_signal
from tests.serve.serving import service
from tests.train.command import shoestring_here

LIMIT = 60


class Hasty(Connection):
    """Cuts at once."""

    head_seconds = write_seconds = 0.1


def serve(app: Any, work: Callable[[str, int], Any], kind: type[Connection] = Hasty) -> None:
    """Run a server while a client does its work."""

    async def inside() -> None:
        listening = listen("127.0.0.1", 0)
        config = uvicorn.Config(app, http=kind, ws="none", lifespan="off", log_config=None, access_log=False)
        server = uvicorn.Server(config)
        running = asyncio.ensure_future(server._serve([listening]))
        try:
            await asyncio.wait_for(work(*listening.getsockname()), LIMIT)
        finally:
            server.should_exit = True
            await asyncio.wait_for(running, LIMIT)

    asyncio.run(inside())


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize("begun", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhos"])
def test_headers_that_do_not_come_are_not_waited_for(begun: bytes) -> None:
    async def work(host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(begun)
        found = await reader.read()  # until the other side closes
        assert found.endswith(b"ok" if b"\r\n\r\n" in begun else b"")
        writer.close()

    serve(hello, work)


def test_a_client_that_reads_nothing_is_gone() -> None:
    told = asyncio.Event()

    async def flood(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            told.set()

        watch = asyncio.ensure_future(gone())
        while not told.is_set():
            await send({"type": "http.response.body", "body": b"x" * (1 << 20), "more_body": True})
            await asyncio.sleep(0)
        await watch

    async def work(host: str, port: int) -> None:
        with socket.create_connection((host, port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            await told.wait()

    serve(flood, work)


def test_a_client_that_takes_its_time_within_limits_is_served() -> None:
    async def work(host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        for _ in range(2):  # and its connection is kept
            for piece in (b"GET / HT", b"TP/1.1\r\nhost: a\r\n", b"\r\n"):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.001)
            assert await reader.readuntil(b"ok")
        writer.close()

    serve(hello, work, Connection)


def test_an_engine_that_cannot_be_made_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("can't allocate memory\nand more")

    monkeypatch.setattr("shoestring.serve.served_model.Engine", fail)
    with (
        listen("127.0.0.1", 0) as listening,
        pytest.raises(ShoestringError, match=r"no engine can be made: can't allocate memory$"),
    ):
        serve_until_signal(service(), listening, 1.0, lambda: None)


def said(*words: object) -> str:
    status, output, errors = shoestring_here("serve", *words)
    assert (status, output) == (2, "")
    assert errors.count("\n") == 1
    return errors


def test_wrong_commands_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert f"it cannot listen at 127.0.0.1, port {port}: Address already in use" in said("smollm2", "--port", port)
    assert "cannot listen at nowhere.invalid, port 0" in said("smollm2", "--host", "nowhere.invalid", "--port", 0)
    assert "/nowhere cannot be read" in said("smollm2", "--api-keys", "/nowhere")
    assert "no drafter method is named 'ngrams'" in said("smollm2", "--drafter", "ngrams")
    assert "needs a draft model: give --draft PLACE" in said("smollm2", "--drafter", "draft_model")
    assert "give --datastore FILE" in said("smollm2", "--mixture", "knn_lm")
    assert "--routers is for a depth that needs a file" in said("smollm2", "--routers", "x")
    assert "argument --body: 'much'" in said("smollm2", "--body", "much")
    assert "two models would be called 'a'" in said("a", "b/a")
    assert "is no model that can be opened" in said(tmp_path / "none", "--port", 0)
    assert "the following arguments are required: PLACE" in said()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert said("smollm2") == "shoestring: a server needs uvicorn: pip install 'shoestring[serve]'\n"
