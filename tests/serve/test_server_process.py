"""The server as a process, asked by OpenAI's own client, by curl and from a browser; a client that goes away; SIGTERM."""

import http.client
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
import torch

from shoestring.data.bpe import byte_tokenizer
from tests.base.making import save, stock
from tests.serve.browser import CHROMIUM, Browser
from tests.serve.serving import CHATML
from tests.train.command import Command, start

KEY = "a-key-for-tests"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
LONG = {"prompt": "Hello", "max_tokens": 3000, "ignore_eos": True, "stream": True}
LIMIT = 60.0


class Server(NamedTuple):
    """A process, and where it listens."""

    process: Command
    address: str

    def ask(self, path: str, fields: dict[str, Any] | None = None) -> http.client.HTTPResponse:
        """The answer to a request, its body not read yet."""
        connection = http.client.HTTPConnection(self.address.removeprefix("http://"), timeout=LIMIT)
        headers = {"authorization": f"Bearer {KEY}"}
        body = None if fields is None else json.dumps(fields)
        connection.request("GET" if fields is None else "POST", path, body, headers)
        return connection.getresponse()

    def figure(self, name: str) -> float:
        """One of its metrics."""
        text = self.ask("/metrics").read().decode()
        return sum(
            float(value) for value in re.findall(rf"^shoestring_{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        )

    def until(self, name: str, value: float) -> None:
        """Wait until a metric has a value."""
        end = time.monotonic() + LIMIT
        while self.figure(name) != value:
            assert time.monotonic() < end, f"{name} is {self.figure(name)}, not {value}"


def endless(model: Any) -> Any:
    """The model with a feature that is the same at every place, by which it never ends a text."""
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        model.model.norm.weight[0] = 1.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[256:, 0] = -1000.0
    return model


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    tokenizer = byte_tokenizer()
    tokenizer.rules.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(folder)
    (folder / "chat_template.jinja").write_text(CHATML)
    save(endless(stock("llama", vocab_size=259, max_position_embeddings=4096, eos_token_id=256)), folder)
    (folder / "keys").write_text(KEY + "\n")
    words = ["serve", f"tiny={folder}", "--port", 0, "--api-keys", folder / "keys", "--rows", 4, "--room", 20000]
    process = start(*words)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.fullmatch(r"(http://127\.0\.0\.1:\d+) answers as tiny\n", line)
    if found is None:
        process.kill()
        pytest.fail(f"{line!r} {process.communicate()[1]}")
    yield Server(process, found[1])
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key=KEY, max_retries=0, timeout=LIMIT) as made:
        yield made


def test_openais_client_reads_all_answers(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    chat = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=6, seed=1, n=2, logprobs=True, top_logprobs=2
    )
    assert [choice.finish_reason for choice in chat.choices] == ["length", "length"]
    assert chat.choices[0].logprobs is not None
    assert len(chat.choices[0].logprobs.content or ()) == 6
    assert chat.usage is not None
    assert chat.usage.completion_tokens == 12
    cost = (chat.usage.model_extra or {})["cost"]
    assert cost["written"] == 12
    assert cost["flops"] > 0
    text = client.completions.create(model="tiny", prompt="Hello", max_tokens=6, seed=1, logprobs=1)
    assert text.choices[0].logprobs is not None
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=6, seed=1, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert said == chat.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6
    tool: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    call: Any = {"type": "regex", "regex": r'<tool_call>\{"name": "look", "arguments": \{\}\}</tool_call>'}
    called = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=90, tools=[tool], response_format=call
    ).choices[0]
    assert (called.finish_reason, called.message.content) == ("tool_calls", None)
    assert called.message.tool_calls is not None
    (one,) = called.message.tool_calls
    assert one.type == "function"
    assert (one.function.name, one.function.arguments) == ("look", "{}")
    history: list[Any] = [*HELLO, called.message, {"role": "tool", "tool_call_id": one.id, "content": "42"}]
    again = client.chat.completions.create(model="tiny", messages=history, tools=[tool], max_tokens=4)
    assert again.choices[0].finish_reason == "length"
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["yes", "no"]}}}
    strict = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=20, response_format=form)
    assert strict.choices[0].message.content in ('"yes"', '"no"')


def test_openais_client_knows_the_errors(server: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.BadRequestError, match="temperature") as wrong:
        client.completions.create(model="tiny", prompt="a", temperature=-1)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.RateLimitError) as late:
        client.completions.create(model="tiny", prompt="a", extra_body={"budget": {"seconds": 1e-6}})
    assert late.value.code == "budget_unreachable"
    other = openai.OpenAI(base_url=f"{server.address}/v1", api_key="wrong", max_retries=0)
    with other, pytest.raises(openai.AuthenticationError):
        other.models.list()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server: Server) -> None:
    body = {"messages": HELLO, "max_tokens": 4, "stream": True}
    words = ["curl", "-sSN", "-i", f"{server.address}/v1/chat/completions", "-H", f"Authorization: Bearer {KEY}"]
    found = subprocess.run(
        [*words, "-H", "Shoestring-Budget: 60s", "-d", json.dumps(body)], capture_output=True, text=True, timeout=LIMIT
    )
    head, _, rest = found.stdout.partition("\n\n")
    assert head.startswith("HTTP/1.1 200 OK")
    assert "content-type: text/event-stream" in head
    assert rest.endswith("data: [DONE]\n\n")


def test_a_client_that_goes_away_frees_its_room(server: Server) -> None:
    capacity = server.figure("cache_tokens")
    written = server.figure("tokens_total")
    answer = server.ask("/v1/completions", LONG)
    assert answer.readline().startswith(b"data: {")
    assert server.figure("unfinished_answers") == 1
    answer.close()
    server.until("unfinished_answers", 0)
    server.until("cache_free_tokens", capacity)
    assert server.figure("tokens_total") - written < 3000 + 5, "it was not written to its end"


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser (apt-get install chromium)")
def test_the_page_in_a_browser(server: Server, tmp_path: Path) -> None:
    browser = Browser(tmp_path)
    try:
        browser.go(server.address)
        assert "a key is needed" in browser.wait("document.querySelector('.wrong')?.innerText")
        browser.run(
            f"(key => {{ key.value = {KEY!r}; key.dispatchEvent(new Event('change')); }})(document.getElementById('key'))"
        )
        browser.wait("document.getElementById('model').value === 'tiny'")
        browser.run("document.getElementById('tokens').value = 12")
        browser.said.clear()  # what was refused without a key
        browser.run("document.getElementById('message').value = 'Hello <b>you</b>'")
        browser.run("document.getElementById('form').requestSubmit()")
        cost = browser.wait("document.querySelector('.cost')?.innerText")
        assert re.search(r"\d+ tokens read · .*\b12 written · .*FLOPs · .*B moved · [\d.]+ s · first token after", cost)
        assert browser.run("document.querySelector('.user').innerText") == "Hello <b>you</b>"
        assert browser.run("document.querySelector('.answer').innerText") != ""
        assert browser.run("document.querySelectorAll('main b').length") == 0
        assert "12 written" in browser.run("document.getElementById('total').innerText")
        # a second question is read with the first; another is stopped
        browser.run("document.getElementById('tokens').value = 3000; document.getElementById('message').value = 'More'")
        browser.run("document.getElementById('form').requestSubmit()")
        browser.wait("document.querySelectorAll('.answer')[1]?.innerText")
        browser.run("document.getElementById('stop').click()")
        assert browser.wait("document.querySelectorAll('.cost')[1]?.innerText").startswith("stopped")
        server.until("unfinished_answers", 0)
        assert browser.said == []
        assert len(browser.picture()) > 5000
    finally:
        browser.close()


def test_at_sigterm_it_answers_what_it_has_and_takes_nothing_new(server: Server) -> None:
    """The last: it ends the server."""
    answer = server.ask("/v1/completions", {**LONG, "max_tokens": 1000})
    assert answer.readline().startswith(b"data: {")
    server.process.send_signal(signal.SIGTERM)
    end = time.monotonic() + LIMIT
    while (new := server.ask("/v1/completions", {"prompt": "a", "max_tokens": 1})).status == 200:
        assert time.monotonic() < end
    assert new.status == 503
    assert json.loads(new.read())["error"]["code"] == "draining"
    assert json.loads(server.ask("/health").read())["status"] == "draining"
    chunks = [line for line in answer.read().split(b"\n\n") if line]
    assert chunks[-1] == b"data: [DONE]"
    assert json.loads(chunks[-2].removeprefix(b"data: "))["choices"][0]["finish_detail"] == "max_tokens reached"
    _, errors = server.process.communicate(timeout=LIMIT)
    assert server.process.returncode == 0
    assert "Traceback" not in errors
