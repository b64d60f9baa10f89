"""2,000 requests damaged at random: none is answered by a 5xx, none harms the next, and none learns what is not its business."""

import json
import random
from typing import Any

import pytest
from starlette.testclient import TestClient

from shoestring.serve.settings import Keys, Settings
from tests.fuzz.mutations import mutate_bytes, mutate_json
from tests.serve.serving import PLACE, client, service, writer

COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "pattern": "[a-z]{1,3}"}, "b": {"enum": [1, None]}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
SEEDS: list[tuple[str, dict[str, Any]]] = [
    (COMPLETE, {"model": "tiny", "prompt": "Hello", "max_tokens": 3, "temperature": 0.5, "stop": ["x"], "logprobs": 2}),
    (COMPLETE, {"prompt": [[1, 2], [3]], "max_tokens": 2, "n": 2, "seed": 4, "logit_bias": {"5": 2.5}, "echo": True}),
    (COMPLETE, {"prompt": ["a", "b"], "max_tokens": 2, "budget": {"seconds": 60, "tokens": 90, "flops": 1e12, "least_tokens": 1}}),
    (COMPLETE, {"prompt": "a", "max_tokens": 4, "response_format": {"type": "regex", "regex": "(ab|c)+[0-9]"}}),
    (CHAT, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "stream": True,
            "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2}),
    (CHAT, {"messages": [{"role": "system", "content": [{"type": "text", "text": "Be"}]}, {"role": "user", "content": "Hi"}],
            "max_completion_tokens": 3, "tools": [TOOL], "tool_choice": "auto"}),
    (CHAT, {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{\"a\": 1}"}}]},
            {"role": "tool", "content": "4", "tool_call_id": "1"}], "max_tokens": 2}),
    (CHAT, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6,
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}),
]  # fmt: skip
PATHS = (
    COMPLETE,
    CHAT,
    "/v1/models",
    "/v1/models/tiny",
    "/health",
    "/metrics",
    "/",
    "/v1/",
    "/%00",
    "/..%2f",
    "/v1/models/%F0",
)
SECRETS = (PLACE, "Traceback", 'File "', "shoestring/", "site-packages", "the-key")
HEADERS = [
    ("authorization", b"Bearer the-key"), ("host", b"localhost:80"), ("origin", b"http://localhost"), ("cookie", b"a=b"),
    ("content-type", b"application/json"), ("content-encoding", b"gzip"), ("shoestring-budget", b"2s, 300tok, 1e9flops"),
]  # fmt: skip


def sent(draw: random.Random, http: TestClient, key: dict[str, str]) -> Any:
    path, fields = draw.choice(SEEDS)
    content = json.dumps(fields).encode()
    headers = {"content-type": "application/json", **key}
    way = draw.random()
    if way < 0.05:  # elsewhere, in another way
        return http.request(
            draw.choice(("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "FOO")),
            draw.choice(PATHS),
            content=content,
            headers=headers,
        )
    if way < 0.15:
        name, known = draw.choice(HEADERS)
        value = mutate_bytes(known, draw)
        headers[name] = (
            value.replace(b"\r", b"").replace(b"\n", b"").strip(b" \t\0").decode("latin-1").replace("\0", "")
        )
        return http.post(path, content=content, headers={k.encode(): v.encode("latin-1") for k, v in headers.items()})
    return http.post(path, content=mutate_json(content, draw), headers=headers)


@pytest.mark.parametrize("count", [600, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_mutated_request_is_the_servers_fault(count: int, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(rows=4, tokens=64, keys=Keys(["the-key"]), answer=8, body=1 << 16)
    draw, made = random.Random(20), service(settings, tiny=writer(context=64))
    key, statuses = {"authorization": "Bearer the-key"}, dict[int, int]()
    with client(made) as http:
        for number in range(count):
            answer = sent(draw, http, key)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            assert answer.status_code < 500, f"request {number}: {answer.text}"
            assert not any(secret in answer.text for secret in SECRETS), f"request {number}: {answer.text}"
            if answer.status_code >= 400 and answer.request.method != "HEAD":
                error = answer.json()["error"]
                assert error.keys() == {"message", "type", "param", "code"}
                assert error["message"].isprintable()
                assert len(error["message"]) < 1000
        # and all that was answered has left nothing behind
        assert http.post(COMPLETE, json=SEEDS[0][1], headers=key).status_code == 200
        model = made.models[0]
        assert (model.unfinished, made.active) == (0, 0)
        free = made.metrics.registry.get_sample_value("shoestring_cache_free_tokens", {"model": "tiny"})
        assert free == model.capacity
    assert not caplog.records
    assert statuses[200] > count / 20
    assert {400, 401, 404, 405, 413} <= statuses.keys()
