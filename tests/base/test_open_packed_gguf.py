"""GGUF files whose matrices stay packed: no weight is rounded, and the logits are near those of plain numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from shoestring.base import open_model
from shoestring.base.quantised_model import PackedHead
from shoestring.contract.batch import Inputs
from shoestring.errors import ShoestringError, UsageError
from shoestring.lowbit.gguf_groups import BLOCK_BYTES, groups
from shoestring.lowbit.grouped import GroupedEmbedding, GroupedLinear
from shoestring.model.native_pass import NativePass
from tests.base import making

gguf: Any = pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "llama, biases": {"attention_bias": True},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
}


@pytest.mark.parametrize("kind", BLOCK_BYTES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_are_the_same_numbers(family: str, kind: str, tmp_path: Path) -> None:
    making.write_gguf(making.stock(family.partition(",")[0], **FAMILIES[family]), tmp_path / "a.gguf", kind)
    plain = open_model(str(tmp_path / "a.gguf"), torch.float32).model
    opened = open_model(str(tmp_path / "a.gguf"), "packed")
    packed: Any = opened.model
    assert f"its matrices stay in {kind}" in opened.about.notes[0]
    assert opened.about.digest == open_model(str(tmp_path / "a.gguf")).about.digest
    for name, module in plain.named_modules():  # type: ignore[attr-defined]
        if not hasattr(module, "weight"):
            continue
        own = packed.get_submodule(name)
        if isinstance(own, GroupedLinear | GroupedEmbedding):
            # the file's formula rounds d q and d q + m; the weights are the same to that
            torch.testing.assert_close(
                own.groups().values()[:, : own.in_features], module.weight.data, rtol=1e-6, atol=1e-6
            )
            if isinstance(own, GroupedLinear) and module.bias is not None:
                assert torch.equal(own.bias, module.bias)  # type: ignore[arg-type]
        else:
            assert torch.equal(own.weight, module.weight)
    assert sum(isinstance(module, GroupedLinear) for module in packed.modules()) == 8
    ids = making.ids(2, 20)
    with torch.no_grad():
        found, wanted = packed.read(Inputs(ids)), plain.read(Inputs(ids)).logits()
        assert isinstance(found.head, PackedHead)
        near = float((found.logits() - wanted).norm() / wanted.norm())
        assert near < 0.05  # of rounding activations to eight bits
        torch.testing.assert_close(packed.embedding(ids), plain.embedding(ids), rtol=1e-6, atol=1e-6)  # type: ignore[attr-defined]
    assert isinstance(packed.native, NativePass)
    with pytest.raises(IndexError, match="between 0 and 511"):
        packed.embedding(torch.tensor([512]))


def test_blocks_are_read_as_the_gguf_package_reads_them() -> None:
    """At random bytes, but for scales that are no numbers."""
    for kind, size in BLOCK_BYTES.items():
        content = torch.randint(0, 256, (7, 3 * size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        blocks = content.view(7, 3, size)
        blocks[..., 1] &= 0x3B  # the high byte of the scale: below 1
        blocks[..., 3] &= 0x3B if kind == "Q4_1" else 0xFF
        wanted = gguf.quants.dequantize(content.numpy(), gguf.GGMLQuantizationType[kind])
        torch.testing.assert_close(groups(content, kind).values(), torch.from_numpy(wanted), rtol=1e-6, atol=1e-6)
    with pytest.raises(ShoestringError, match="no whole number of Q8_0's blocks"):
        groups(content[:, :-1], "Q8_0")
    large = torch.zeros(1, 18, dtype=torch.uint8)
    large[0, :2] = torch.tensor([30000.0], dtype=torch.float16).view(torch.uint8)
    with pytest.raises(ShoestringError, match="beyond float16"):
        groups(large, "Q4_0")


def test_matrices_of_other_types_are_plain_numbers_and_said_to_be(tmp_path: Path) -> None:
    model = making.stock("llama", hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    making.write_gguf(model, tmp_path / "k.gguf", "Q6_K")
    with pytest.raises(UsageError, match="no matrices in Q4_0, Q4_1, Q8_0"):
        open_model(str(tmp_path / "k.gguf"), "packed")
    making.write_gguf(model, tmp_path / "f.gguf", "F32")
    with pytest.raises(UsageError, match="no matrices in Q4_0"):
        open_model(str(tmp_path / "f.gguf"), "packed")
    making.save(model, tmp_path / "folder")
    with pytest.raises(UsageError, match="of the kind 'transformers', which has no packed weights"):
        open_model(str(tmp_path / "folder"), "packed")
