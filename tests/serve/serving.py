"""A server in this process with a small random model that chats, and ways to ask it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from starlette.testclient import TestClient
from tokenizers import AddedToken

from shoestring.base import Opened, Provenance
from shoestring.base.writer import Writer
from shoestring.config import build
from shoestring.data.bpe import byte_tokenizer
from shoestring.data.tokenizer import TextTokenizer
from shoestring.model import ModelConfig, Transformer
from shoestring.serve.app import Service, make_app
from shoestring.serve.metrics import Metrics
from shoestring.serve.served_model import ServedModel
from shoestring.serve.settings import Settings

CHATML = (
    "{% if tools %}{{ '<|im_start|>tools\\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|im_end|>\\n' }}"
    "{% endif %}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}{{ '<tool_call>' }}{{ call['function']['arguments'] | tojson }}"
    "{{ '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
END, START, STOP, VOCABULARY, CONTEXT = 256, 257, 258, 260, 256
"""One token of the model's is in no tokenizer, as padded vocabularies have them."""
PLACE = "/secret/place/of/the/model"


def writer(template: str | None = CHATML, context: int = CONTEXT) -> Writer:
    """A random native model, its blocks away from where they start, that reads bytes."""
    rules = byte_tokenizer().rules
    rules.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    sizes = {"layers": 1, "width": 32, "heads": 2, "vocabulary": VOCABULARY, "context": context}
    torch.manual_seed(0)
    made = Transformer(build(ModelConfig, sizes))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    opened = Opened(
        made.requires_grad_(False).eval(),
        TextTokenizer(rules, end=END),
        Provenance(PLACE, "test", "ab", chat_template=template),
    )
    return Writer.of(opened)


def service(settings: Settings | None = None, **models: Writer) -> Service:
    """A server's service; one model named 'tiny' where none is given."""
    settings, metrics = settings or Settings(rows=4, tokens=64), Metrics()
    made = [ServedModel(name, each, settings, metrics) for name, each in (models or {"tiny": writer()}).items()]
    return Service(made, settings, metrics)


@contextmanager
def client(made: Service) -> Iterator[TestClient]:
    """A client of it, while it runs."""
    with TestClient(make_app(made), base_url="http://localhost", raise_server_exceptions=False) as found:
        yield found


def events(text: str) -> list[Any]:
    """What a stream of events says, but for its last, which must be [DONE]."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
