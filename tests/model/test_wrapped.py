"""A wrapped model beside its logits, which the parity table has: costs, state, training, and what it refuses."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from shoestring.config import Choice
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.cache import Cache
from shoestring.contract.cost import Shape
from shoestring.contract.objective import At
from shoestring.errors import UsageError
from shoestring.model.cache import ContiguousLayer
from shoestring.model.hf import from_transformers
from shoestring.model.wrapped import Wrapped
from shoestring.objective.cross_entropy import plain
from shoestring.objective.next_token import NextToken
from shoestring.optim.partition import partition
from shoestring.train.step import Stepper
from tests.model.test_model_flops import CPU_ATTENTION
from tests.model.test_parity import CONTEXT, SIZES, WRAPPED, ids, stock


@pytest.fixture(params=WRAPPED)
def wrapped(request: pytest.FixtureRequest) -> Wrapped:
    made = stock(*WRAPPED[request.param])
    if request.param == "mixtral":  # torch's counter does not know the grouped product of all experts
        made.set_experts_implementation("eager")
    return Wrapped(made)


def counted(work: Any) -> int:
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        work()
    found: int = counter.get_total_flops()
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_flops_are_those_torch_counts(wrapped: Wrapped, packed: bool, backward: bool) -> None:
    documents = (torch.arange(12) // 4).expand(2, -1) if packed else None

    def work() -> None:
        with torch.set_grad_enabled(backward):
            logits = wrapped(ids(2, 12), documents=documents)
        if backward:
            logits.sum().backward()

    wrapped(ids(1, 1))  # what is worked out once is no part of a pass
    assert wrapped.cost(Shape(2, 12, backward=backward)).flops == pytest.approx(counted(work), rel=0.01)


@pytest.mark.parametrize(("past", "new"), [(0, 9), (9, 1), (9, 4)])
def test_flops_of_cached_decoding(wrapped: Wrapped, past: int, new: int) -> None:
    cache = wrapped.new_cache(2, 20)
    with torch.no_grad():
        reading = wrapped.read(Inputs(ids(2, past)), cache) if past else wrapped.read(Inputs(ids(2, 1)))
        body = counted(lambda: wrapped.read(Inputs(ids(2, new)), cache))
        head = counted(lambda: reading.head.logits(reading.hidden[:, -1:]))
    assert wrapped.cost(Shape(2, new, past, outputs=1)).flops == pytest.approx(body + head, rel=0.01)
    assert cache.nbytes == 20 / (past + new) * (wrapped.cost(Shape(2, new, past)).held - wrapped.cost(Shape(2, 0)).held)


@pytest.mark.parametrize("trained", ["layers.1", "embed", "lm_head", "norm"])
def test_flops_where_some_weights_are_frozen(trained: str) -> None:
    made = Wrapped(stock("llama", {}))
    made.requires_grad_(False)
    for name, parameter in made.named_parameters():
        parameter.requires_grad = trained in name
    made.changed()
    made(ids(1, 1))
    found = counted(lambda: made(ids(2, 12)).sum().backward())
    assert made.cost(Shape(2, 12, backward=True)).flops == found


def test_the_state_has_a_tied_matrix_once_and_comes_back(wrapped: Wrapped, tmp_path: Path) -> None:
    save_file(wrapped.state_dict(), tmp_path / "state.safetensors")
    other = copy.deepcopy(wrapped)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    with torch.no_grad():
        assert torch.equal(other(ids(2, 9)), wrapped(ids(2, 9)))
    assert set(wrapped.state_dict()) == {name for name, _ in wrapped.named_parameters()}


def test_it_trains_by_the_stepper_and_without_dropout() -> None:
    dropout = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    made = Wrapped(stock("gpt2", {**WRAPPED["gpt2"][1], **dropout})).train()
    optimiser = partition(made, Choice.of("optim", "adamw", lr=1e-2)).build()
    stepper = Stepper(
        made,
        NextToken(plain),
        optimiser,
        device="cpu",
        precision="float32",
        micro_batch=1,
        clip=1.0,
    )
    batch, losses = Batch(Inputs(ids(2, 12)), ids(2, 13)[:, 1:]), []
    for step in range(8):
        result = stepper.gradients(batch, At(step))
        assert result.loss == pytest.approx(NextToken(plain)(made, batch, At(step)).mean.item(), rel=1e-5)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(result.loss)
    assert losses[-1] < 0.7 * losses[0]


def test_taps_have_the_names_of_the_layers(wrapped: Wrapped) -> None:
    names = wrapped.layers()
    reading = wrapped.read(Inputs(ids(2, 7)), tap=names)
    assert set(reading.tapped) == set(names)
    assert len(names) == 2
    assert all(tensor.shape == (2, 7, 32) for tensor in reading.tapped.values())
    with pytest.raises(UsageError, match=r"no module is named 'blocks\.0'"):
        wrapped.read(Inputs(ids(2, 7)), tap=["blocks.0"])


def test_a_head_with_a_cap_is_the_models_own_and_a_plain_one_is_a_matrix() -> None:
    capped, bare = Wrapped(stock(*WRAPPED["gemma2"])), Wrapped(stock(*WRAPPED["gemma"]))
    assert capped.read(Inputs(ids(1, 3))).head.weight is None
    assert bare.read(Inputs(ids(1, 3))).head.weight is bare.get_output_embeddings().weight
    hidden = torch.randn(3, 32) * 100
    assert capped.read(Inputs(ids(1, 3))).head.logits(hidden).abs().max() <= 2.0
    other, state = Wrapped(stock(*WRAPPED["gemma"])), torch.get_rng_state()
    other.read(Inputs(ids(1, 3)))
    assert torch.equal(torch.get_rng_state(), state)


def test_bfloat16_reads_with_a_cache(wrapped: Wrapped) -> None:
    low = wrapped.to(torch.bfloat16)
    cache = low.new_cache(2, 12)
    with torch.no_grad():
        pieces = torch.cat([low(piece, cache=cache) for piece in ids(2, 12).split([5, 1, 6], 1)], 1)
        whole = low(ids(2, 12))
    assert pieces.dtype == low.dtype == torch.bfloat16
    torch.testing.assert_close(pieces, whole, atol=0.2, rtol=0.1)


class Sparse(ContiguousLayer):
    """A layer that hides some of its places, of each key head others; never a token from itself."""

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys, values, visible = super().append(keys, values)
        assert self._coming is not None
        queries, places = self._coming.positions, torch.arange(keys.shape[2])
        causal = places <= queries[:, :, None]
        heads = torch.arange(keys.shape[1])[:, None, None]
        hidden = (places % (heads + 2) == 1) & (places != queries[:, None, :, None])
        return keys, values, (causal[:, None] if visible is None else visible) & ~hidden


@pytest.mark.parametrize("way", ["sdpa", "eager"])
def test_layers_of_a_cache_may_hide_tokens_each_in_its_own_way(way: str) -> None:
    """As the native model does with the same cache."""
    theirs = stock("llama", {})
    theirs.set_attn_implementation(way)
    answers = []
    for model in (Wrapped(theirs), from_transformers(theirs)):
        plain_cache = model.new_cache(2, 20)
        layers = [Sparse(one.keys, one.values) for one in plain_cache.layers[:1]] + plain_cache.layers[1:]
        cache = Cache(layers, 2, 20)
        with torch.no_grad():
            pieces = [model.read(Inputs(x), cache).logits() for x in ids(2, 14).split([6, 1, 4, 3], 1)]
            ragged = model.read(Inputs(ids(2, 3), lengths=torch.tensor([3, 1])), cache).logits()
        answers.append(torch.cat([*pieces, ragged[:, :1]], 1))
    torch.testing.assert_close(*answers, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert (answers[0][:, :14] - theirs(ids(2, 14)).logits).abs().max() > 1e-2
    assert theirs.config._attn_implementation == way


def test_what_it_cannot_do_is_refused() -> None:
    made = Wrapped(stock("gpt2", WRAPPED["gpt2"][1]))
    with pytest.raises(UsageError, match="41 tokens do not fit in a context of 40"):
        made(ids(1, CONTEXT + 1))
    with pytest.raises(UsageError, match="only a native model has a depth"):
        made.read(Inputs(ids(1, 3)), depth=object())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="reads token ids"):
        made.read(Inputs(torch.randn(1, 3, 4)))
    windowed = Wrapped(stock(*WRAPPED["gemma2"]))
    layers = [Sparse(one.keys, one.values) for one in windowed.new_cache(1, 9).layers]
    with pytest.raises(UsageError, match="see 5 tokens only"):
        windowed.read(Inputs(ids(1, 3)), Cache(layers, 1, 9))


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        ("t5", {}, "no decoder with a head"),
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 1}, "mamba"),
        ("bloom", {"hidden_size": 32, "n_layer": 1, "n_head": 4}, "names no context"),
        ("bert", {"is_decoder": True}, "'stock.cls.predictions.transform.dense.weight' of this bert model costs"),
    ],
)
def test_models_it_does_not_know_are_refused(kind: str, more: dict[str, Any], words: str) -> None:
    sizes = {"vocab_size": 60} if kind in ("mamba", "bloom") else SIZES
    config = transformers.AutoConfig.for_model(kind, **{**sizes, **more})
    with torch.device("meta"):
        auto = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
        made = auto.from_config(config)
    with pytest.raises(UsageError, match=words):
        Wrapped(made)
