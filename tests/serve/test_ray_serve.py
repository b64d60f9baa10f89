"""The recipe that serves replicas under Ray: one replica's application by itself, and two under Ray, where it is installed."""

import http.client
import importlib.util
import json
import os
import socket
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from starlette.testclient import TestClient

from shoestring.data.bpe import byte_tokenizer
from tests.base.making import save, stock
from tests.serve.serving import events

RECIPE = Path(__file__).parents[2] / "recipes" / "ray_serve.py"
PROMPTS = [f"Prompt {number}" for number in range(12)]
TOKENS = 8


def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ray_serve", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    byte_tokenizer().save(path)
    return save(stock("llama", vocab_size=257, max_position_embeddings=128, eos_token_id=256), path)


def asked(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, "max_tokens": TOKENS, "seed": 1, "ignore_eos": True, **more}


def test_a_replica_is_the_whole_server_and_says_who_it_is(folder: Path) -> None:
    with TestClient(recipe().replica(str(folder), "tiny"), base_url="http://localhost") as client:
        whole = client.post("/v1/completions", json=asked("Hello"))
        assert whole.status_code == 200, whole.text
        assert whole.headers["shoestring-replica"].endswith(f":{os.getpid()}")
        streamed = client.post("/v1/completions", json=asked("Hello", stream=True))
        pieces = [choice["text"] for event in events(streamed.text) for choice in event["choices"]]
        assert "".join(pieces) == whole.json()["choices"][0]["text"]
        assert client.get("/health").json()["status"] == "ok"
        assert client.get("/health", headers={"host": "elsewhere.org"}).status_code >= 400


@pytest.mark.slow
def test_two_replicas_give_the_texts_of_one_engine(folder: Path) -> None:
    ray = pytest.importorskip("ray")
    from ray import serve

    made = recipe()
    with TestClient(made.replica(str(folder), "tiny"), base_url="http://localhost") as client:
        alone = [client.post("/v1/completions", json=asked(prompt)).json()["choices"] for prompt in PROMPTS]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = os.environ.get("SHOESTRING_TEST_RAY", "local")  # of a cluster with three cores; 'local' starts one
    ray.init(address, **({"num_cpus": 3, "include_dashboard": False} if address == "local" else {}))
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(made.application(str(folder), "tiny", 2))
        answered = dict[str, int]()
        for _ in range(20):  # a request goes to either of two replicas, by chance
            for prompt, choices in zip(PROMPTS, alone, strict=True):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                connection.request("POST", "/v1/completions", json.dumps(asked(prompt)))
                answer = connection.getresponse()
                body = json.loads(answer.read())
                assert answer.status == 200, body
                assert body["choices"] == choices
                who = answer.headers["shoestring-replica"]
                answered[who] = answered.get(who, 0) + 1
            if len(answered) == 2:
                break
        assert len(answered) == 2, answered
        connection.request("POST", "/v1/completions", json.dumps(asked(PROMPTS[0], stream=True)))
        streamed = connection.getresponse().read().decode()
        pieces = [choice["text"] for event in events(streamed) for choice in event["choices"]]
        assert "".join(pieces) == alone[0][0]["text"]
    finally:
        serve.shutdown()
        ray.shutdown()
