"""GGUF files of quantised models: their blocks are the codes and scales, read back by the `gguf` package and by the opener."""

from pathlib import Path
from typing import Any

import pytest
import torch

from shoestring.base import open_model
from shoestring.base.opened import Opened, Provenance
from shoestring.config import Choice
from shoestring.data.bpe import byte_tokenizer, train_bpe
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.quantise.conduct import QuantiseOutcome
from shoestring.quantise.engine import quantise_layers
from shoestring.quantise.formats.integer_groups import IntegerGroups
from shoestring.quantise.kronecker import Kronecker
from shoestring.shrink.gguf_quantised import GGUF_FORMATS, block_rows, write_quantised_gguf
from tests.quantise import making

gguf: Any = pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")


@pytest.mark.parametrize("kind", GGUF_FORMATS)
def test_the_package_reads_the_numbers_that_the_codes_stand_for(kind: str) -> None:
    name, options = GGUF_FORMATS[kind]
    weight = torch.randn(5, 512, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[1], [1e-3], [3], [0], [9]]
    )
    made = Choice.of("quantise", name, kind="format", **options).build().encode(weight)
    found, content = block_rows(made, kind)
    assert found == kind
    back = gguf.quants.dequantize(content.numpy(), gguf.GGMLQuantizationType[kind])
    assert torch.equal(torch.from_numpy(back), made.plain())


TOKENIZERS = {
    "Q8_0": train_bpe(["ab cd ef gh " * 50], 280),
    "Q4_0": byte_tokenizer(),  # without merges, and so is the next
    "Q4_K": train_bpe(["abc"], 280),
    "TQ2_0": train_bpe(["ab cd ef gh " * 50], 259),
}
"""Of the files of each type."""


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_file_opens_as_the_same_model(kind: str, tmp_path: Path) -> None:
    tokenizer: TextTokenizer = TOKENIZERS[kind]
    torch.manual_seed(0)
    config = ModelConfig(
        layers=1, width=256, heads=4, key_value_heads=2, hidden=64, vocabulary=tokenizer.vocabulary, context=24
    )
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=parameter.shape[1] ** -0.5)
    name, options = GGUF_FORMATS[kind]
    form = Choice.of("quantise", name, kind="format", **options).build()
    done = quantise_layers(model, (), making.recipe(form, table_bits=8))
    made = QuantiseOutcome(1, 1, 1, {**done.tables, **done.matrices}, done)
    opened = Opened(model, tokenizer, Provenance("here", "run", "0"))
    size, said = write_quantised_gguf(tmp_path / "a.gguf", opened, model, made, kind)
    assert size == (tmp_path / "a.gguf").stat().st_size
    types = {one.name: one.tensor_type.name for one in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert (types["blk.0.attn_q.weight"], types["token_embd.weight"]) == (kind, "Q8_0")
    narrow = kind in ("Q4_K", "TQ2_0")  # the output matrix of the feed-forward layer has 64 columns
    assert types["blk.0.ffn_down.weight"] == ("Q4_0" if narrow else kind)
    assert any("no multiple of 256" in line for line in said) == narrow
    read = open_model(str(tmp_path / "a.gguf"), torch.float32)
    assert read.tokenizer is not None
    assert read.tokenizer.encode("ab cd, été") == tokenizer.encode("ab cd, été")
    again: Any = read.model
    for theirs, ours in zip(again.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=1e-6)


def test_what_gguf_has_no_type_for_is_refused() -> None:
    weight = torch.randn(2, 64)
    with pytest.raises(UsageError, match="GGUF has no type"):
        block_rows(IntegerGroups(code_bits=3, group=32, symmetric=True).encode(weight), "Q4_0")
    made = IntegerGroups(code_bits=4, group=32, symmetric=True).encode(weight)
    turned = type(made)(made.format, 2, 64, made.codes, made.parameters, Kronecker(torch.eye(8), torch.eye(8)))
    with pytest.raises(UsageError, match="use another --transform"):
        block_rows(turned, "Q4_0")
    with pytest.raises(UsageError, match="no multiple of"):
        block_rows(IntegerGroups(code_bits=4, group=32, symmetric=True).encode(weight[:, :40]), "Q4_0")
