"""A model as an author: answers as when asked alone, on a native model and on one of transformers; and the command that uses it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken

from shoestring.base.author import ModelAuthor
from shoestring.base.opened import Opened, Provenance
from shoestring.base.writer import Writer
from shoestring.cli import data as command
from shoestring.config import build
from shoestring.contract.model import LanguageModel
from shoestring.data.bpe import byte_tokenizer
from shoestring.data.tokenizer import TextTokenizer
from shoestring.decode import Sampling, generate
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.model.wrapped import Wrapped
from tests.train.command import shoestring_here as shoestring

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONTEXT = 512


def native() -> LanguageModel:
    torch.manual_seed(0)
    sizes = {"layers": 1, "width": 32, "heads": 2, "vocabulary": 259, "context": CONTEXT}
    return Transformer(build(ModelConfig, sizes)).eval()


def hugging_face() -> LanguageModel:
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
    return Wrapped(transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).eval())


def opened(model: LanguageModel) -> Opened:
    rules = byte_tokenizer().rules
    rules.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    return Opened(model, TextTokenizer(rules, end=256), Provenance("here", "test", "0", chat_template=CHATML))


@pytest.mark.parametrize("make", [native, hugging_face])
def test_answers_are_those_of_a_model_asked_alone(make: Callable[[], LanguageModel]) -> None:
    model = make()
    author = ModelAuthor(Writer.of(opened(model)), rows=2)
    asked, seeds = ["Hello", "Good morning", "Bye"], [3, 4, 5]
    found = author.answers(asked, seeds, 12, 0.0)
    for text, answer in zip(asked, found.texts, strict=True):
        ids = author.writer.chat_ids([{"role": "user", "content": text}])
        alone = list(generate(model, ids, Sampling(temperature=0), max_new_tokens=12, end=author.writer.answer_ends))
        assert answer.text == author.writer.tokenizer.decode(alone).strip()
        assert answer.whole == (len(alone) < 12)
    assert found.spent.written >= sum(len(answer.text) > 0 for answer in found.texts)
    assert found.spent.flops > 0
    assert author.answers(asked, seeds, 12, 0.8).texts == author.answers(asked, seeds, 12, 0.8).texts
    with pytest.raises(UsageError, match="make passages or answers shorter"):
        author.answers(["x" * CONTEXT], [0], 12, 0.0)
    assert author.answers([], [], 12, 0.0).texts == ()


def test_the_command_writes_what_a_model_made_and_charges_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = tmp_path / "pages.jsonl"
    pages.write_text("".join(json.dumps({"text": f"page {number} tells of w{number}"}) + "\n" for number in range(3)))
    author = ModelAuthor(Writer.of(opened(native())))
    monkeypatch.setattr(command, "open_author", lambda place: author)
    options = ["passage=60", "shortest=10", "tokens=8", "least=0"]
    words = ["data", pages, "--synthesis=wrap", "--synthesis.author=here", *(f"--synthesis.{each}" for each in options)]
    status, output, errors = shoestring(*words, "--out", tmp_path / "out", "--json")
    assert status == 0, errors
    found = json.loads(output)
    card = json.loads((tmp_path / "out" / "data-card.json").read_text())
    assert card["synthesised"]["texts"] + sum(card["synthesised"]["dropped"].values()) == 6
    assert found["synthesised"]["dropped"] == card["synthesised"]["dropped"]
    assert card["synthesised"]["spent"]["flops"] > 0
    assert (tmp_path / "out" / "documents" / "00000.jsonl").exists()
    for wrong, said in ((words, "give --out FOLDER"), ([*words, "--out", tmp_path / "x", "--keep-dropped"], "neither")):
        status, _, errors = shoestring(*wrong)
        assert (status, len(errors.splitlines())) == (2, 1)
        assert said in errors
