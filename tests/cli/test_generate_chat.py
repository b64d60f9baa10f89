"""`shoestring generate --chat`: messages through the model's template, and where an answer ends."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from shoestring.base import Opened, Provenance
from shoestring.cli import generate
from shoestring.config import build
from shoestring.data.bpe import byte_tokenizer
from shoestring.data.tokenizer import TextTokenizer
from shoestring.model import ModelConfig, Transformer
from tests.train.command import shoestring_here as shoestring

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
START, STOP = 257, 258


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Transformer:
    rules = byte_tokenizer().rules
    rules.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    sizes = {"layers": 1, "width": 32, "heads": 2, "vocabulary": 259, "context": 128}
    torch.manual_seed(0)
    made = Transformer(build(ModelConfig, sizes)).eval()
    opened = Opened(made, TextTokenizer(rules, end=256), Provenance("here", "test", "", chat_template=CHATML))
    monkeypatch.setattr(generate, "open_model", lambda place, dtype: opened)
    return made


def answered(*words: object) -> list[dict[str, Any]]:
    status, output, errors = shoestring("generate", "here", "--tokens", 4, "--json", *words)
    assert status == 0, errors
    return [json.loads(line) for line in output.splitlines()]


def test_prompts_are_messages_of_a_user(model: Transformer) -> None:
    first, second = answered("--chat", "Hello", "Bye", "--system", "Be kind")
    assert first["prompt"] == (
        "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert first["messages"] == [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hello"}]
    assert first["prompt_tokens"] == 3 + 2 + len("system\nBe kind\nuser\nHello\nassistant\n")
    assert second["messages"][1]["content"] == "Bye"
    status, output, _ = shoestring("generate", "here", "--tokens", 4, "--chat", "Hello", "--system", "Be kind")
    assert (status, output) == (0, first["text"] + "\n")  # an answer alone


def test_chats_come_from_a_file(model: Transformer, tmp_path: Path) -> None:
    hello, there = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, (hello, there, hello))))
    (tmp_path / "two.jsonl").write_text(f"{json.dumps({'messages': [hello]})}\n\n{json.dumps([hello, there, hello])}\n")
    one = answered("--messages", tmp_path / "one.jsonl")
    assert [sample["messages"] for sample in one] == [[hello, there, hello]]
    both = answered("--messages", tmp_path / "one.jsonl", "--messages", tmp_path / "two.jsonl")
    assert [len(sample["messages"]) for sample in both] == [3, 1, 3]


def test_an_answer_ends_with_the_templates_own_token(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    for token, stopped in ((STOP, "end"), (256, "end"), (START, "length"), (65, "length")):
        monkeypatch.setattr(sys.modules["shoestring.decode.choosing"], "choose", lambda *_, chosen=token: chosen)
        (found,) = answered("--chat", "Hello")
        assert (found["stopped"], found["tokens"]) == (stopped, 0 if stopped == "end" else 4)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "holds no messages"),
        ("{", "line 1 is not JSON"),
        ('{"role": "user"}', "line 1 has something that is no message"),
        ("[]", "line 1 is a chat without messages"),
        ('{"role": "user", "content": "\\ud800"}', "line 1 has half of a surrogate pair"),
        ('[{"role": "user", "content": "a"}]\n{"role": "user", "content": "a"}', "has whole chats and single messages"),
        ('{"role": "user", "content": "' + "a" * 200 + '"}', "tokens, and this model reads 128: shorten it"),
    ],
)
def test_bad_files_are_one_line(model: Transformer, tmp_path: Path, lines: str, said: str) -> None:
    (tmp_path / "bad.jsonl").write_text(lines)
    status, output, errors = shoestring("generate", "here", "--messages", tmp_path / "bad.jsonl")
    assert (status, output) == (2, "")
    assert said in errors
    assert errors.count("\n") == 1
