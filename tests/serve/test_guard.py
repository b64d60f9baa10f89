"""Who is let in, how much a request may be, what a deadline and a closing server answer."""

import asyncio
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from shoestring.errors import UsageError
from shoestring.serve.app import Service, make_app
from shoestring.serve.errors import ApiError
from shoestring.serve.http import read_body
from shoestring.serve.served_model import names_of
from shoestring.serve.settings import KEYS, Keys, Settings
from tests.serve.serving import client, service

COMPLETE = "/v1/completions"
SMALL = {"prompt": "Hello", "max_tokens": 2}


@pytest.fixture(scope="module")
def locked() -> Iterator[TestClient]:
    settings = Settings(rows=2, tokens=32, keys=Keys(["one-key", "another"]), body=500, hosts=frozenset({"localhost"}))
    with client(service(settings)) as found:
        yield found


@pytest.fixture(scope="module")
def opened() -> Iterator[tuple[TestClient, Service]]:
    made = service(Settings(rows=2, tokens=32, queue=2))
    with client(made) as found:
        yield found, made


def error(answer: Any) -> Any:
    return answer.json()["error"]


@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer wrong", "Basic one-key", "Bearer one-key2", "one-key", "Bearer \xe4"]
)
@pytest.mark.parametrize("path", [COMPLETE, "/v1/models", "/metrics", "/v1/nothing"])
def test_without_a_key_nobody_gets_in(locked: TestClient, header: str | None, path: str) -> None:
    answer = locked.get(path, headers={} if header is None else {b"authorization": header.encode("latin-1")})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert error(answer)["code"] == "invalid_api_key"


def test_with_a_key_one_gets_in_and_health_needs_none(locked: TestClient) -> None:
    for key in ("Bearer one-key", "bearer another"):
        assert locked.post(COMPLETE, json=SMALL, headers={"authorization": key}).status_code == 200
    assert locked.get("/health").status_code == 200
    assert locked.get("/").status_code == 200


def test_a_host_of_another_name_is_refused(locked: TestClient) -> None:
    for host, status in (
        ("localhost:81", 200),
        ("LOCALHOST", 200),
        ("evil.example", 403),
        ("localhost.evil", 403),
        ("[::1]", 403),
    ):
        assert locked.get("/health", headers={"host": host}).status_code == status


def test_pages_of_others_are_refused_where_no_key_is_asked(opened: tuple[TestClient, Service]) -> None:
    http, _ = opened
    foreign = http.post(COMPLETE, json=SMALL, headers={"origin": "http://evil.example"})
    assert (foreign.status_code, error(foreign)["code"]) == (403, "foreign_origin")
    assert http.post(COMPLETE, json=SMALL, headers={"origin": "null"}).status_code == 403
    assert http.post(COMPLETE, json=SMALL, headers={"origin": "http://localhost"}).status_code == 200


def test_a_body_has_its_limits(locked: TestClient) -> None:
    key = {"authorization": "Bearer one-key"}
    long = locked.post(COMPLETE, json={"prompt": "a" * 600}, headers=key)
    assert (long.status_code, error(long)["message"]) == (413, "the body is longer than 500 bytes")
    chunked = locked.post(COMPLETE, content=iter([b"a" * 300, b"a" * 300]), headers=key)
    assert chunked.status_code == 413
    packed = locked.post(COMPLETE, content=b"x", headers={**key, "content-encoding": "gzip"})
    assert packed.status_code == 415
    assert locked.post(COMPLETE, content=b"", headers=key).status_code == 400


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def never() -> Any:
        await asyncio.Event().wait()

    with pytest.raises(ApiError, match=r"did not arrive within 0\.01 s") as found:
        asyncio.run(read_body({"type": "http", "headers": []}, never, 100, 0.01))
    assert found.value.status == 408


def test_every_answer_has_the_headers_that_keep_it_from_others(opened: tuple[TestClient, Service]) -> None:
    http, _ = opened
    for answer in (http.get("/"), http.get("/health"), http.get("/nothing"), http.post(COMPLETE, json=SMALL)):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers


def test_a_budget_is_kept_or_refused(opened: tuple[TestClient, Service]) -> None:
    http, made = opened
    rates = made.models[0].rates
    tight = http.post(COMPLETE, json={**SMALL, "budget": {"seconds": 1e-6}})
    assert (tight.status_code, error(tight)["type"]) == (429, "rate_limit_error")
    assert int(tight.headers["retry-after"]) >= 1
    header = http.post(COMPLETE, json={**SMALL, "max_tokens": 9}, headers={"shoestring-budget": "8tok"})
    assert (header.status_code, error(header)["code"]) == (400, "budget_too_small")
    assert "14 tokens would do" in error(header)["message"]
    some = http.post(COMPLETE, json={**SMALL, "max_tokens": 9, "budget": {"tokens": 8, "least_tokens": 1}})
    assert some.json()["usage"]["completion_tokens"] == 3
    whole = http.post(COMPLETE, json={**SMALL, "max_tokens": 9}).json()["usage"]
    half = http.post(
        COMPLETE,
        json={"prompt": "World", "max_tokens": 9, "budget": {"flops": whole["cost"]["flops"] * 0.8, "least_tokens": 1}},
    ).json()["usage"]
    assert 1 <= half["completion_tokens"] < 9
    assert half["cost"]["flops"] <= whole["cost"]["flops"] * 0.8
    assert rates.known


def test_an_answer_ends_with_its_deadline(opened: tuple[TestClient, Service], monkeypatch: pytest.MonkeyPatch) -> None:
    http, _ = opened
    seen = iter(range(10**6))
    # the engine's clock goes on by a second each time it is looked at
    clock = SimpleNamespace(monotonic=lambda: float(next(seen)), perf_counter=time.perf_counter)
    for module in ("engine", "row_queue"):
        monkeypatch.setattr(f"shoestring.decode.{module}.time", clock)
    fields = {"prompt": "Hello", "max_tokens": 200, "ignore_eos": True, "budget": {"seconds": 30.0, "least_tokens": 1}}
    choice = http.post(COMPLETE, json=fields).json()["choices"][0]
    assert (choice["finish_reason"], choice["finish_detail"]) == ("length", "its time was over")


def test_more_answers_than_fit_are_refused(opened: tuple[TestClient, Service]) -> None:
    http, _ = opened
    many = http.post(COMPLETE, json={**SMALL, "n": 5})
    assert (many.status_code, error(many)["code"]) == (400, "too_many_answers")
    assert http.post(COMPLETE, json={**SMALL, "n": 4}).status_code == 200


def test_more_requests_than_fit_are_refused_before_they_are_read(opened: tuple[TestClient, Service]) -> None:
    http, made = opened
    made.active += 4
    full = http.post(COMPLETE, content=b"not even JSON")
    assert (full.status_code, error(full)["code"], full.headers["retry-after"]) == (429, "queue_full", "1")
    made.active -= 1
    assert http.post(COMPLETE, json=SMALL).status_code == 200
    made.active -= 3
    assert made.active == 0


def test_a_closing_server_takes_nothing_new(opened: tuple[TestClient, Service]) -> None:
    http, made = opened
    made.draining = True
    try:
        answer = http.post(COMPLETE, json=SMALL)
        assert (answer.status_code, error(answer)["code"], answer.headers["retry-after"]) == (503, "draining", "5")
        assert answer.headers["connection"] == "close"
        assert http.get("/health").json()["status"] == "draining"
        assert http.get("/health").status_code == 503
        assert http.get("/metrics").status_code == 200
    finally:
        made.draining = False
    assert http.post(COMPLETE, json=SMALL).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_pass_that_fails_is_a_500_that_says_nothing_and_the_next_request_is_answered(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = service()
    with client(made) as http:
        read = made.models[0].writer.opened.model.read
        calls = iter(range(100))

        def fail(*given: Any, **named: Any) -> Any:
            if next(calls) == 1:  # drafts may write all of the answer in the pass after the prompt
                raise RuntimeError("/secret/place: out of memory")
            return read(*given, **named)

        monkeypatch.setattr(made.models[0].writer.opened.model, "read", fail)
        answer = http.post(COMPLETE, json={**SMALL, "max_tokens": 9, "stream": stream})
        assert answer.status_code == (200 if stream else 500)
        assert "the server failed at this request" in answer.text
        assert "secret" not in answer.text
        assert "[DONE]" not in answer.text
        assert http.post(COMPLETE, json=SMALL).status_code == 200
        assert made.models[0].unfinished == 0


async def visit(app: Any, fields: dict[str, Any], leaves: int) -> int:
    """Ask, and go away after so many pieces of the answer. Returns how many came."""
    left, came = asyncio.Event(), 0
    sent = iter([{"type": "http.request", "body": json.dumps(fields).encode(), "more_body": False}])

    async def receive() -> Any:
        message = next(sent, None)
        if message is None:
            await left.wait()
        return message or {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal came
        if b"data: {" in message.get("body", b""):
            came += 1
            if came == leaves:
                left.set()
                await asyncio.Event().wait()  # it reads nothing more

    scope = {
        "type": "http",
        "method": "POST",
        "path": COMPLETE,
        "headers": [(b"host", b"localhost")],
        "query_string": b"",
    }
    await asyncio.wait_for(app(scope, receive, send), 60)
    return came


async def emptied(made: Service) -> None:
    """Until the cache has all its room."""
    model = made.models[0]
    assert (model.unfinished, made.active) == (0, 0)
    while made.metrics.registry.get_sample_value("shoestring_cache_free_tokens", {"model": "tiny"}) != model.capacity:
        await asyncio.sleep(0.005)


def test_clients_that_go_away_free_their_room_and_harm_no_others() -> None:
    draw, made = random.Random(3), service(Settings(rows=4, tokens=32, room=600, queue=100))
    prompts = ["Hello", "Hello you " * 4, "Hello you " * 8 + "and more"]
    fields = [
        {
            "prompt": prompt,
            "max_tokens": 30,
            "ignore_eos": True,
            "stream": True,
            "temperature": 0,
            "n": draw.choice((1, 1, 2)),
        }
        for prompt in prompts
    ]

    async def inside() -> None:
        app: Any = make_app(made)
        async with app.router.lifespan_context(app):
            whole = [await visit(app, each, 0) for each in fields]
            for _ in range(2):
                chosen = [draw.randrange(3) for _ in range(16)]
                leaves = [draw.choice((0, 1, 3, 12)) for _ in chosen]
                came = await asyncio.gather(
                    *(visit(app, fields[at], leave) for at, leave in zip(chosen, leaves, strict=True))
                )
                assert came == [leave or whole[at] for at, leave in zip(chosen, leaves, strict=True)]
                await asyncio.wait_for(emptied(made), 60)

    asyncio.run(inside())


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    path.write_text("first\n\n second \n")
    keys = Keys.read(path)
    assert ["first" in keys, "second" in keys, "" in keys, "firs" in keys] == [True, True, False, False]
    monkeypatch.setenv(KEYS, "a,b, ")
    assert "b" in Keys.read(None)
    monkeypatch.delenv(KEYS)
    assert not Keys.read(None)
    for content, said in ((b"", "holds no key"), (b"a b", "no header can hold"), (b"\xff", "is not text")):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=said):
            Keys.read(path)
    with pytest.raises(UsageError, match="cannot be read"):
        Keys.read(tmp_path / "none")


def test_models_have_names() -> None:
    assert names_of(["runs/a/", "big=hf:x/y@main", "hf:Qwen/Small@abc", "/models/m.gguf", "smollm2"]) == [
        ("a", "runs/a/"), ("big", "hf:x/y@main"), ("Small", "hf:Qwen/Small@abc"), ("m", "/models/m.gguf"), ("smollm2", "smollm2"),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="two models would be called 'a'"):
        names_of(["runs/a", "other/a"])
