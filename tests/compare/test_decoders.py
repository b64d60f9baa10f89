"""Ways to decode with the real engine: their texts, their likelihood, their costs; no times are judged."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from shoestring.base.opened import Opened, Provenance
from shoestring.compare import decoders
from shoestring.compare.decoders import DecodeConfig, Decoders, check_arms
from shoestring.compare.decoding_folder import read_prompts
from shoestring.config import build, to_toml
from shoestring.data.bpe import byte_tokenizer
from shoestring.decode import Sampling, generate
from shoestring.errors import ShoestringError, UsageError
from shoestring.model import ModelConfig, Transformer

PROMPTS = ["abc abc abc", "x = 1; y = 2", "to be or not to be", "17 18 19 17 18"]


@pytest.fixture(scope="module")
def opened() -> Opened:
    torch.manual_seed(2)
    model = Transformer(
        build(ModelConfig, {"layers": 2, "width": 32, "heads": 2, "vocabulary": 257, "context": 64})
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return Opened(model, byte_tokenizer(), Provenance("here", "run", "0"))


@pytest.fixture(autouse=True)
def _opens(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "open_model", lambda place: opened)


def config(**values: Any) -> DecodeConfig:
    return build(DecodeConfig, {"place": "here", "max_new_tokens": 12, **values})


PLAIN, NGRAM = config(), config(drafter={"name": "ngram", "most": 4})
WARM = config(sampling={"temperature": 1.0})


def written(opened: Opened, prompt: str, seed: int, temperature: float) -> list[int]:
    tokenizer = opened.tokenizer
    assert tokenizer is not None
    ids = [tokenizer.end, *tokenizer.encode(prompt)]
    sampling = Sampling(temperature=temperature, seed=seed)
    return list(generate(opened.model, ids, sampling, max_new_tokens=12, end=tokenizer.end))


def test_an_exact_drafter_keeps_the_text_and_wastes_what_is_refused(opened: Opened) -> None:
    bench = Decoders({"plain": PLAIN, "ngram": NGRAM}, PROMPTS, likelihood=True)
    plain, ngram = bench(("plain", "ngram"), 0)
    assert plain.texts == ngram.texts
    assert len(set(plain.texts)) == bench.items == len(PROMPTS)
    assert plain.items["loss"] == pytest.approx(ngram.items["loss"])
    assert set(plain.items["wasted/written"]) == {0.0}
    assert sum(ngram.items["wasted/written"]) > 0
    assert all(seconds > 0 for outcome in (plain, ngram) for seconds in outcome.items["seconds/written"])


def test_the_loss_is_that_of_what_was_written(opened: Opened) -> None:
    (outcome,) = Decoders({"plain": PLAIN, "warm": WARM}, PROMPTS, likelihood=True)(("warm",), 3)
    tokenizer = opened.tokenizer
    assert tokenizer is not None
    for prompt, loss in zip(PROMPTS, outcome.items["loss"], strict=True):
        ids, tokens = [tokenizer.end, *tokenizer.encode(prompt)], written(opened, prompt, 3, 1.0)
        with torch.no_grad():
            logits = opened.model(torch.tensor([[*ids, *tokens]]))[0].log_softmax(-1)  # type: ignore[operator]
        each = [-float(logits[len(ids) - 1 + place, token]) for place, token in enumerate(tokens)]
        assert loss == pytest.approx(sum(each) / len(each), rel=1e-4)


def test_seeds_change_what_is_sampled_and_nothing_else() -> None:
    bench = Decoders({"plain": PLAIN, "warm": WARM}, PROMPTS)
    first, again, other = (bench(("plain", "warm"), seed) for seed in (0, 0, 1))
    assert [outcome.texts for outcome in first] == [outcome.texts for outcome in again]
    assert first[0].texts == other[0].texts
    assert first[1].texts != other[1].texts


def test_an_item_may_be_several_prompts() -> None:
    single = Decoders({"a": PLAIN, "b": PLAIN}, PROMPTS)(("a",), 0)[0]
    both = {"a": config(rows=2), "b": config(rows=2, tokens=3)}
    one, other = Decoders(both, PROMPTS)(("a", "b"), 0)
    assert len(one.texts) == 2
    assert one.texts == other.texts
    assert one.spent["written"] == single.spent["written"]
    assert one.items["moved/written"][0] < single.items["moved/written"][0]  # weights are read once for both


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"place": "there"}, "decode.place is not the same in b and a"),
        ({"rows": 2}, "decode.rows is not the same"),
        ({"max_new_tokens": 5}, "decode.max_new_tokens is not the same"),
    ],
)
def test_arms_on_other_items_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_arms({"a": PLAIN, "b": config(**values)})


def test_what_does_not_fit_is_said_before_anything_is_timed() -> None:
    with pytest.raises(UsageError, match="prompt 2 has 61 tokens; with 12 more they exceed the context, 64"):
        Decoders({"a": PLAIN, "b": PLAIN}, ["x", "y" * 60])
    with pytest.raises(UsageError, match="most"):
        config(drafter={"name": "ngram", "most": 0})
    with pytest.raises(UsageError, match="no drafter method is named 'ngrams'"):
        config(drafter="ngrams")


def test_a_way_to_decode_is_read_as_it_was_written() -> None:
    for each in (PLAIN, NGRAM, WARM, config(tokens=7, scheduler="first_come")):
        assert build(DecodeConfig, tomllib.loads(to_toml(each))) == each


def test_prompts_are_read_from_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"question": "b"}\n{"text": "c", "more": 1}\n')
    assert read_prompts(path) == ["a", "b", "c"]
    for content, said in (('{"prompt": ""}\n', "line 1: no text"), ("", "holds no prompts"), ("{]\n{}\n", "damaged")):
        path.write_text(content)
        with pytest.raises(ShoestringError, match=said):
            read_prompts(path)
    with pytest.raises(UsageError, match="no such file"):
        read_prompts(tmp_path / "none.jsonl")
