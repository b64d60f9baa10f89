"""Weights from a stream of tensors: in any order, in little memory, and none too few, too many or of another shape."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from shoestring.errors import UsageError
from shoestring.model.bridge.family import family_of
from shoestring.model.bridge.fill import fill
from shoestring.model.hf import from_transformers
from shoestring.model.transformer import Transformer
from shoestring.optim.row_blocks import row_blocks
from tests.model.test_parity import ids, stock


def filled(kind: str, tensors: Any, dtype: torch.dtype = torch.float32, **more: Any) -> Transformer:
    family = family_of(kind)
    return fill(family.config(stock(kind, more).config), family, tensors, dtype)


def weights(kind: str, **more: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = stock(kind, more).state_dict()
    return found


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_a_folder_shard_by_shard_in_another_type(kind: str, tmp_path: Path) -> None:
    made = stock(kind, {})
    made.save_pretrained(tmp_path, max_shard_size="20KB")
    files = sorted(tmp_path.glob("*.safetensors"), reverse=True)
    assert len(files) > 2

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for file in files:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (no mapping)
                    yield name, opened.get_tensor(name)

    low = filled(kind, tensors(), torch.bfloat16)
    assert {weight.dtype for weight in low.state_dict().values()} == {low.rotary.cos.dtype} == {torch.bfloat16}
    expected = from_transformers(made).to(torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(low(ids(2, 9)), expected(ids(2, 9)))
    mixer: Any = low.blocks[1].token_mixer
    assert row_blocks(mixer.qkv.weight) == mixer.qkv.row_blocks


def test_no_more_than_one_tensor_is_asked_for_at_a_time() -> None:
    state, alive = weights("llama"), []

    def tensors() -> Iterator[tuple[str, Tensor]]:
        import weakref

        for name, tensor in state.items():
            given = tensor.clone()
            alive.append(weakref.ref(given))
            yield name, given
            del given
            assert sum(one() is not None for one in alive) <= 1

    model = filled("llama", tensors())
    assert not any(parameter.is_meta for parameter in [*model.parameters(), *model.buffers()])


def without(name: str) -> Callable[[dict[str, Tensor]], list[tuple[str, Tensor]]]:
    return lambda state: [item for item in state.items() if item[0] != name]


def instead(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], list[tuple[str, Tensor]]]:
    return lambda state: [*{**state, name: tensor}.items()]


UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without(UP), f"1 weights of this llama model are missing: '{UP}'"),
        (
            instead("model.extra.weight", torch.ones(2)),
            "'model.extra.weight' is the name of no weight of this llama model",
        ),
        (instead(UP, torch.ones(80, 32)), r"up_proj.weight' has the shape \(80, 32\), where the model has \(40, 32\)"),
        (instead(UP, torch.ones(40)), r"shape \(40,\)"),
        (instead(UP, torch.ones(40, 32, dtype=torch.uint8)), "torch.uint8, and no plain weight"),
        (lambda state: [*state.items(), (UP, state[UP])], "up_proj.weight' is there twice"),
    ],
)
def test_what_is_wrong_with_a_stream_is_said(change: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        filled("llama", change(weights("llama")))
    assert "\n" not in str(raised.value)


def test_names_of_older_files() -> None:
    state = weights("gpt_neox")
    state["embed_out.weight"] = state.pop("lm_head.weight")
    for layer in range(2):
        state[f"gpt_neox.layers.{layer}.attention.bias"] = torch.ones(1, 1, 40, 40, dtype=torch.bool)
        state[f"gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq"] = torch.ones(4)
    expected = from_transformers(stock("gpt_neox", {}))
    with torch.no_grad():
        assert torch.equal(filled("gpt_neox", state.items())(ids(1, 5)), expected(ids(1, 5)))


def test_a_tied_model_may_have_its_head_twice_if_it_is_the_same() -> None:
    state = weights("llama", tie_word_embeddings=True)
    assert filled("llama", state.items(), tie_word_embeddings=True).head is None
    del state["lm_head.weight"]
    assert filled("llama", state.items(), tie_word_embeddings=True).head is None
    state["lm_head.weight"] = state["model.embed_tokens.weight"] + 1
    with pytest.raises(UsageError, match=r"tied, and yet 'lm_head\.weight' is not its embedding"):
        filled("llama", state.items(), tie_word_embeddings=True)
