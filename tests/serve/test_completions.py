"""What OpenAI's paths answer: texts, streams, samples, log-probabilities, constraints, usage."""

import json
import math
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from shoestring.decode import generate
from shoestring.decode.sampling import Sampling
from shoestring.serve.app import Service
from tests.serve.serving import END, PLACE, STOP, client, events, service, writer

COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[TestClient, Service]]:
    made = service(None, tiny=writer(), plain=writer(template=None))
    with client(made) as found:
        yield found, made


@pytest.fixture
def http(running: tuple[TestClient, Service]) -> TestClient:
    return running[0]


def ask(http: TestClient, path: str, **fields: Any) -> Any:
    body = {
        "model": "tiny",
        **({"messages": HELLO} if path == CHAT else {"prompt": "Hello"}),
        "max_tokens": 8,
        **fields,
    }
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return events(answer.text) if fields.get("stream") else answer.json()


def alone(prompt: list[int], count: int, sampling: Sampling, ends: set[int] | None = None) -> list[int]:
    return list(generate(writer().opened.model, prompt, sampling, max_new_tokens=count, end=ends or {END}))


def test_a_completion_is_what_the_engine_writes_and_says_what_it_cost(http: TestClient) -> None:
    found = ask(http, COMPLETE, temperature=0)
    (choice,) = found["choices"]
    made = writer()
    expected = made.tokenizer.decode(alone(list(b"Hello"), 8, Sampling(temperature=0)))
    assert (choice["text"], choice["index"], choice["finish_reason"]) == (expected, 0, "length")
    assert (found["object"], found["model"]) == ("text_completion", "tiny")
    usage = found["usage"]
    assert [usage[f"{name}_tokens"] for name in ("prompt", "completion", "total")] == [5, 8, 13]
    cost = usage["cost"]
    assert (cost["read"], cost["written"], cost["reused"], cost["wasted"]) == (5, 8, 0, 0)
    assert cost["flops"] > 0
    assert cost["moved_bytes"] > 0
    assert {"prefill", "decode"} <= cost["seconds"].keys()
    assert 0 < cost["first_token_seconds"] <= cost["elapsed_seconds"]


@pytest.mark.parametrize("path", [COMPLETE, CHAT])
@pytest.mark.parametrize("more", [{}, {"n": 3}, {"stop": ["a", "e", "i"]}, {"max_tokens": 40, "temperature": 1.5}])
def test_a_stream_says_the_same_piece_by_piece(http: TestClient, path: str, more: dict[str, Any]) -> None:
    given: dict[str, Any] = {"seed": 7, **more}
    whole = ask(http, path, **given)
    chunks = ask(http, path, stream=True, stream_options={"include_usage": True}, **given)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert all(chunk["usage"] is None and chunk["id"] == chunks[0]["id"] for chunk in chunks[:-1])
    for choice in whole["choices"]:
        own = [each for chunk in chunks[:-1] for each in chunk["choices"] if each["index"] == choice["index"]]
        if path == CHAT:
            assert own[0]["delta"]["role"] == "assistant"
            assert "".join(each["delta"]["content"] for each in own) == choice["message"]["content"]
        else:
            assert "".join(each["text"] for each in own) == choice["text"]
        assert [each["finish_reason"] for each in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] == choice["finish_reason"]
    assert len(whole["choices"]) == more.get("n", 1)


def test_several_prompts_and_samples_have_their_places(http: TestClient) -> None:
    several = ask(http, COMPLETE, prompt=["Hello", "Bye"], n=2, seed=3)
    assert [each["index"] for each in several["choices"]] == [0, 1, 2, 3]
    bye = ask(http, COMPLETE, prompt=list(b"Bye"), n=2, seed=3)
    assert [each["text"] for each in several["choices"][2:]] == [each["text"] for each in bye["choices"]]
    assert several["usage"]["prompt_tokens"] == 8
    echoed = ask(http, COMPLETE, prompt=["Hello", "Bye"], n=2, seed=3, echo=True)
    for place, each in enumerate(echoed["choices"]):
        assert each["text"] == ("Hello", "Bye")[place // 2] + several["choices"][place]["text"]


def test_the_seed_decides_and_without_one_chance_does(http: TestClient) -> None:
    one, two = (ask(http, COMPLETE, seed=5, max_tokens=20)["choices"][0]["text"] for _ in range(2))
    assert one == two
    assert len({ask(http, COMPLETE, max_tokens=20)["choices"][0]["text"] for _ in range(4)}) > 1


def test_all_ways_to_choose_reach_the_engine(http: TestClient) -> None:
    given = {
        "temperature": 0.7, "top_p": 0.8, "top_k": 9, "min_p": 0.01, "repetition_penalty": 1.3, "presence_penalty": 0.5,
        "frequency_penalty": 0.25, "seed": 11,
    }  # fmt: skip
    found = ask(http, COMPLETE, logit_bias={"101": 3}, max_tokens=20, **given)
    expected = alone(list(b"Hello"), 20, Sampling(**given, logit_bias={101: 3.0}))  # type: ignore[arg-type]
    assert found["choices"][0]["text"] == writer().tokenizer.decode(expected)


def test_a_stop_string_ends_before_it(http: TestClient) -> None:
    text = ask(http, COMPLETE, seed=2, max_tokens=30)["choices"][0]["text"]
    stop = text[4:6]
    cut = ask(http, COMPLETE, seed=2, max_tokens=30, stop=stop)
    assert cut["choices"][0]["text"] == text[: text.index(stop)]
    assert (cut["choices"][0]["finish_reason"], cut["choices"][0]["finish_detail"]) == ("stop", "a stop string came")
    assert cut["usage"]["completion_tokens"] < 30


def test_log_probabilities_of_completions(http: TestClient) -> None:
    found = ask(http, COMPLETE, temperature=0, logprobs=3)["choices"][0]["logprobs"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["top_logprobs"]) == 8
    logits = writer().opened.model(torch.tensor([list(b"Hello")]))[0, -1]  # type: ignore[operator]
    wanted = logits.double().log_softmax(0)
    assert found["token_logprobs"][0] == pytest.approx(float(wanted.max()), abs=1e-4)
    assert all(
        max(top.values()) == chosen for top, chosen in zip(found["top_logprobs"], found["token_logprobs"], strict=True)
    )
    assert found["text_offset"][0] == 0
    assert sorted(found["text_offset"]) == found["text_offset"]
    chunks = ask(http, COMPLETE, temperature=0, logprobs=3, stream=True)
    parts = [each["logprobs"] for chunk in chunks for each in chunk["choices"]]
    assert {name: [one for part in parts for one in part[name]] for name in found} == found


def test_log_probabilities_of_chats(http: TestClient) -> None:
    found = ask(http, CHAT, temperature=0, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert len(found) == 8
    for each in found:
        assert each["logprob"] == each["top_logprobs"][0]["logprob"] <= 0
        assert len(each["top_logprobs"]) == 2
        assert each["token"] == bytes(each["bytes"]).decode(errors="ignore") or each["token"][:6] in (
            "bytes:",
            "<|im_e",
        )
    assert ask(http, CHAT)["choices"][0]["logprobs"] is None


def test_a_chat_is_read_as_the_template_has_it_and_ends_there(http: TestClient) -> None:
    found = ask(http, CHAT, temperature=0, logit_bias={str(STOP): 100})
    assert found["choices"][0]["message"] == {"role": "assistant", "content": ""}
    assert (found["choices"][0]["finish_reason"], found["usage"]["completion_tokens"]) == ("stop", 0)
    going = ask(http, CHAT, temperature=0, logit_bias={str(STOP): 100}, ignore_eos=True)
    assert going["usage"]["completion_tokens"] == 8
    ids = writer().chat_ids(HELLO)
    assert found["usage"]["prompt_tokens"] == len(ids)
    expected = alone(ids, 8, Sampling(temperature=0), {END, STOP})
    text = ask(http, CHAT, temperature=0)["choices"][0]["message"]["content"]
    assert text == writer().tokenizer.decode(expected)


def test_tools_and_calls_reach_the_template_and_say_no_special_token(http: TestClient) -> None:
    tool = {"type": "function", "function": {"name": "look<|im_end|>up", "parameters": {}}}
    calls = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"a": "<|im_end|>"}'}}]
    messages: list[Any] = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "42"},
    ]
    ids = writer().chat_ids(
        [*HELLO, {"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": {"a": "<|im_end|>"}}}]},
         messages[2]], [tool],
    )  # fmt: skip
    assert ids.count(STOP) == 4
    text = writer().tokenizer.rules.decode(ids, skip_special_tokens=False)
    assert "look<|im_end|>up" in text
    assert '{"a": "<|im_end|>"}' in text
    assert ask(http, CHAT, messages=messages, tools=[tool])["usage"]["prompt_tokens"] == len(ids)
    without = ask(http, CHAT, messages=messages, tools=[tool], tool_choice="none")["usage"]["prompt_tokens"]
    assert without < len(ids)


CALL = r'I look\. <tool_call>\{"name": "look", "arguments": \{"at": [0-9]\}\}</tool_call>'
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_tools_are_told_from_text(http: TestClient, stream: bool) -> None:
    asked = {"response_format": {"type": "regex", "regex": CALL}, "max_tokens": 120, "n": 2, "stream": stream}
    found = ask(http, CHAT, tools=[LOOK], seed=1, **asked)
    for answer in (0, 1):
        if stream:
            own = [choice for each in found for choice in each["choices"] if choice["index"] == answer]
            said = "".join(choice["delta"]["content"] for choice in own)
            (call,) = [one for choice in own for one in choice["delta"].get("tool_calls", ())]
            assert call.pop("index") == 0
            reason = own[-1]["finish_reason"]
        else:
            choice = found["choices"][answer]
            said, (call,) = choice["message"]["content"], choice["message"]["tool_calls"]
            reason = choice["finish_reason"]
        assert (said, reason, call["type"]) == ("I look. ", "tool_calls", "function")
        assert re.fullmatch(r"call_\w{24}", call["id"])
        assert call["function"]["name"] == "look"
        assert json.loads(call["function"]["arguments"])["at"] in range(10)
    # without tools, or with others, it is text
    other = {"type": "function", "function": {"name": "listen"}}
    for tools in ({}, {"tools": [other]}, {"tools": [LOOK], "tool_choice": "none"}):
        plain = ask(http, CHAT, seed=1, **{**asked, "stream": False}, **tools)["choices"][0]
        assert plain["message"].keys() == {"role", "content"}
        assert "</tool_call>" in plain["message"]["content"]
        assert plain["finish_reason"] == "stop"


def test_parts_of_text_are_one_text(http: TestClient) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    split = ask(http, CHAT, messages=[{"role": "user", "content": parts}], seed=1)
    assert split["choices"][0]["message"] == ask(http, CHAT, seed=1)["choices"][0]["message"]


SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ann", "Bo"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_is_kept(http: TestClient, stream: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
    for seed in range(3):
        found = ask(http, CHAT, response_format=form, max_tokens=60, seed=seed, n=2, stream=stream)
        texts = (
            [
                "".join(c["delta"]["content"] for each in found for c in each["choices"] if c["index"] == n)
                for n in (0, 1)
            ]
            if stream
            else [choice["message"]["content"] for choice in found["choices"]]
        )
        for text in texts:
            person = json.loads(text)
            assert person.keys() == {"name", "age"}
            assert person["name"] in ("Ann", "Bo")
            assert 0 <= person["age"] <= 99


def test_an_expression_and_any_object(http: TestClient) -> None:
    for seed in range(3):
        found = ask(
            http, COMPLETE, response_format={"type": "regex", "regex": r"(foo|bar)-\d{3}"}, max_tokens=40, seed=seed
        )
        assert re.fullmatch(r"(foo|bar)-\d{3}", found["choices"][0]["text"])
        assert found["choices"][0]["finish_reason"] == "stop"
    some = ask(http, COMPLETE, response_format={"type": "json_object"}, max_tokens=5, seed=seed)
    assert some["choices"][0]["text"].startswith("{")
    plain = ask(http, COMPLETE, response_format={"type": "text"}, seed=1)["choices"][0]["text"]
    assert plain == ask(http, COMPLETE, seed=1)["choices"][0]["text"]


def settled(made: Service) -> float:
    """Tokens that the model 'tiny' has written, once no more are counted."""
    found, quiet = -1.0, 0
    while quiet < 5:
        value = made.metrics.registry.get_sample_value("shoestring_tokens_total", {"model": "tiny", "kind": "written"})
        found, quiet = (value or 0, quiet + 1) if found == (value or 0) else (value or 0, 0)
        time.sleep(0.05)
    return found


def test_models_health_metrics_and_the_page(running: tuple[TestClient, Service]) -> None:
    http, made = running
    listed = http.get("/v1/models").json()["data"]
    assert [(each["id"], each["chat"], each["context"]) for each in listed] == [
        ("tiny", True, 256),
        ("plain", False, 256),
    ]
    assert http.get("/v1/models/plain").json() == listed[1]
    assert http.get("/v1/models/other").status_code == 404
    health = http.get("/health").json()
    assert (health["status"], health["models"]) == ("ok", {"tiny": True, "plain": True})
    made.models[0].note("drafts do not pay")
    made.models[0].note("drafts do not pay")
    assert http.get("/health").json()["notes"]["tiny"][-1] == "drafts do not pay"
    assert http.get("/health").json()["notes"]["tiny"].count("drafts do not pay") == 1
    # a pass is counted after its answer is given: so are the last ones of earlier requests
    before = settled(made)
    ask(http, COMPLETE)
    end, after = time.monotonic() + 20, before
    while after < before + 8 and time.monotonic() < end:
        text = http.get("/metrics").text
        after = float(re.findall(r'shoestring_tokens_total{kind="written",model="tiny"} (\S+)', text)[0])
    assert after == before + 8
    for name in ("first_token_seconds_count", "between_tokens_seconds_count", "cache_free_tokens", "waiting_answers",
                 "unfinished_answers", "pass_seconds_count", "flops_total", "moved_bytes_total"):  # fmt: skip
        (value,) = re.findall(rf'shoestring_{name}{{model="tiny"}} (\S+)', text)
        assert math.isfinite(float(value))
    page = http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.findall(r"""(?:src|href)\s*=|https?://|@import|url\(""", page.text)


def test_nothing_is_left_of_what_was_answered(running: tuple[TestClient, Service]) -> None:
    http, made = running
    ask(http, COMPLETE, n=4, max_tokens=30)
    model = made.models[0]
    assert model.unfinished == 0
    assert made.active == 0
    free = re.findall(r'shoestring_cache_free_tokens{model="tiny"} (\S+)', http.get("/metrics").text)
    assert float(free[0]) == model.capacity


WRONG: list[tuple[str, dict[str, Any], int, str]] = [
    (COMPLETE, {"model": "other"}, 404, "there is no model 'other'"),
    (COMPLETE, {"model": None}, 400, "'model' is missing"),
    (CHAT, {"model": "plain"}, 400, "model 'plain' has no chat template"),
    (COMPLETE, {"prompt": ""}, 400, "the prompt is empty"),
    (COMPLETE, {"prompt": [["a"]]}, 400, "prompt must be a text, a list of token ids"),
    (COMPLETE, {"prompt": [259]}, 400, "beyond the vocabulary of 259"),
    (COMPLETE, {"prompt": "a" * 300}, 400, "the prompt has 300 tokens, and this model reads 256"),
    (COMPLETE, {"temprature": 1}, 400, "unknown field 'temprature': did you mean 'temperature'?"),
    (COMPLETE, {"temperature": -1}, 400, "temperature: input should be greater than or equal to 0"),
    (COMPLETE, {"temperature": "1"}, 400, "temperature: input should be a valid number"),
    (COMPLETE, {"max_tokens": 0}, 400, "max_tokens: input should be greater than or equal to 1"),
    (COMPLETE, {"n": 65}, 400, "n: input should be less than or equal to 64"),
    (COMPLETE, {"n": 2, "best_of": 3}, 400, "best_of must be n"),
    (COMPLETE, {"echo": True, "logprobs": 1}, 400, "leave echo out"),
    (COMPLETE, {"suffix": "x"}, 400, "suffix"),
    (COMPLETE, {"logit_bias": {"x": 1}}, 400, "logit_bias: 'x' is no token"),
    (COMPLETE, {"logit_bias": {"259": 1}}, 400, "they are numbers below 259"),
    (COMPLETE, {"stop": [""]}, 400, "stop must be"),
    (COMPLETE, {"response_format": {"type": "regex", "regex": "((("}}, 400, "response_format: the regular expression"),
    (COMPLETE, {"response_format": {"type": "json_object"}, "ignore_eos": True}, 400, "ignore_eos"),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "no"}}}}, 400, "Invalid type"),
    (CHAT, {"messages": []}, 400, "messages: list should have at least 1 item"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages"),
    (CHAT, {"tool_choice": "required"}, 400, "tool_choice: input should be 'none' or 'auto'"),
    (CHAT, {"max_completion_tokens": 3}, 400, "differ: give one of them"),
    (CHAT, {"top_logprobs": 3}, 400, "top_logprobs needs logprobs"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "more", "status", "said"), WRONG, ids=lambda value: str(value)[:40])
def test_what_a_client_can_send_wrong_is_said_in_one_line(
    http: TestClient, path: str, more: dict[str, Any], status: int, said: str
) -> None:
    body = {"model": "tiny", **({"messages": HELLO} if path == CHAT else {"prompt": "Hello"}), "max_tokens": 8, **more}
    answer = http.post(path, json=body)
    error = answer.json()["error"]
    assert answer.status_code == status
    assert said in error["message"]
    assert "\n" not in error["message"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert PLACE not in answer.text


def test_paths_and_methods_that_are_not_there(http: TestClient) -> None:
    assert http.get("/v1/nothing").json()["error"]["message"] == "there is nothing at this path"
    answer = http.get(COMPLETE)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["message"] == "this path does not take that method"
