"""The prompt of the sample that ends a run fits the text the run was trained on."""

from dataclasses import replace
from pathlib import Path

import pytest

from shoestring.config import build
from shoestring.data import DataConfig, Dataset, TokenStore, byte_tokenizer
from shoestring.train.closing import sample_prompt
from shoestring.train.config import RunConfig
from shoestring.train.sections import TrainConfig


def dataset(*heldout: str) -> Dataset:
    tokenizer = byte_tokenizer()
    store = TokenStore.of([tokenizer.encode(text) for text in heldout], tokenizer.end)
    return Dataset(store, store, tokenizer, "")


@pytest.mark.parametrize(
    ("heldout", "prompt"),
    [
        (("Whale ships left the harbour at dawn. More follows.",), "Whale ships left the harbour"),
        (("\n\n  # Title\nA line",), "# Title"),
        ((" \n", "two"), "two"),
        (("日本語" * 40,), "日本語" * 5 + "日"),
        ((" ",), ""),
    ],
)
def test_it_is_the_first_words_of_a_heldout_document(heldout: tuple[str, ...], prompt: str, tmp_path: Path) -> None:
    config = build(RunConfig, {"budget": "1s", "model": {}, "data": {"corpus": str(tmp_path)}})
    assert sample_prompt(config, dataset(*heldout)) == prompt
    assert sample_prompt(replace(config, train=TrainConfig(sample="Once")), dataset(*heldout)) == "Once"
    assert sample_prompt(replace(config, data=DataConfig("python-stdlib")), dataset(*heldout)) == "def main("
