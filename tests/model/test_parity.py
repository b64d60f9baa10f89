"""Every family with a bridge, and models that are wrapped, against transformers itself: tiny random models in float32."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from shoestring.contract.batch import IGNORED, Batch, Inputs
from shoestring.contract.objective import At
from shoestring.model.bridge.family import family_of
from shoestring.model.bridge.fill import taken
from shoestring.model.hf import from_transformers, to_transformers
from shoestring.model.transformer import Transformer
from shoestring.model.wrapped import Wrapped
from shoestring.objective.cross_entropy import plain
from shoestring.objective.next_token import NextToken

CONTEXT, VOCABULARY = 40, 60
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def rope(kind: str, **more: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, **more}}


NEOX = {**SIZES, "num_key_value_heads": None, "hidden_dropout": 0.0}
LLAMA3 = rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=10)
NATIVE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases, wide heads, tied": (
        "llama",
        {"attention_bias": True, "head_dim": 12, "tie_word_embeddings": True},
    ),
    "llama, llama3 scaling": ("llama", LLAMA3),
    "llama, linear scaling": ("llama", rope("linear")),
    "llama, yarn scaling": ("llama", rope("yarn", original_max_position_embeddings=10)),
    "mistral": ("mistral", {"head_dim": 12}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 12, "rms_norm_eps": 1e-5}),
    "qwen3 with biases": ("qwen3", {"head_dim": 8, "attention_bias": True}),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.25}),
    "gpt_neox, one after the other": (
        "gpt_neox",
        {"rotary_pct": 0.5, "use_parallel_residual": False, "hidden_act": "gelu_new", "attention_bias": False},
    ),
    "gpt_neox, wholly rotated, scaled": (
        "gpt_neox",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e3, "factor": 2.0, "partial_rotary_factor": 1.0}},
    ),
}
WRAPPED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}),
    "gemma": ("gemma", {"head_dim": 12, "num_key_value_heads": 1}),
    "gemma2": ("gemma2", {"head_dim": 12, "sliding_window": 5, "final_logit_softcapping": 2.0}),
    "mistral, windows": ("mistral", {"sliding_window": 5}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
}
CASES = {**NATIVE, **{f"wrapped {name}": case for name, case in WRAPPED.items()}}


def named(name: str, text: str) -> str:
    """What is wrong, with what it is wrong of."""
    return f"{name}: {text}"


def gradient_of(parameter: torch.nn.Parameter) -> Tensor:
    """The gradient, which is there."""
    assert parameter.grad is not None
    return parameter.grad


def stock(kind: str, more: dict[str, Any]) -> Any:
    """A random model of transformers, every vector of it away from where it starts."""
    sizes: dict[str, dict[str, Any]] = {
        "gpt_neox": NEOX,
        "gpt2": {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None},
    }
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**sizes.get(kind, SIZES), **more})
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return made


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """(the model of transformers, ours), with no weight in common."""
    theirs = stock(*CASES[request.param])
    if request.param in NATIVE:
        return theirs, from_transformers(theirs)
    return theirs, Wrapped(copy.deepcopy(theirs))


def ids(*shape: int) -> Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(1))


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_whole_read(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    about = ours.about
    assert (about.vocabulary, about.context, about.width, about.layers) == (VOCABULARY, CONTEXT, 32, 2)
    with torch.no_grad():
        close(ours.read(Inputs(ids(2, CONTEXT))).logits(), theirs(ids(2, CONTEXT)).logits)


def test_a_read_in_pieces(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    cache = ours.new_cache(2, CONTEXT)
    with torch.no_grad():
        pieces = [ours.read(Inputs(piece), cache).logits() for piece in ids(2, 30).split([11, 1, 7, 1, 10], 1)]
        close(torch.cat(pieces, 1), theirs(ids(2, 30)).logits)
    assert cache.lengths == [30, 30]


def test_rows_of_different_lengths(pair: tuple[Any, Any]) -> None:
    """Three rows, padded on the right, read in passes of as many tokens as each has; the cache cropped between."""
    theirs, ours = pair
    text, cache = ids(3, 24), ours.new_cache(3, CONTEXT)
    found: list[list[Tensor]] = [[], [], []]
    with torch.no_grad():
        for new in ([9, 4, 6], [3, 1, 2], [1, 1, 1], [2, 9, 0], [1, 1, 1]):
            taken_in = torch.full((3, max(new)), 7)
            for row, count in enumerate(new):
                held = cache.lengths[row]
                taken_in[row, :count] = text[row, held : held + count]
            logits = ours.read(Inputs(taken_in, lengths=torch.tensor(new)), cache).logits()
            for row, count in enumerate(new):
                found[row].append(logits[row, :count])
        for row, length in enumerate(cache.lengths):
            close(torch.cat(found[row]), theirs(text[row : row + 1, :length]).logits[0])
        cache.crop([5, 4, 3])
        again = torch.stack([text[0, 5:9], text[1, 4:8], text[2, 3:7]])
        logits = ours.read(Inputs(again), cache.take(torch.arange(3))).logits()
        for row, length in enumerate((9, 8, 7)):
            close(logits[row], theirs(text[row : row + 1, :length]).logits[0, -4:])


def test_padding_without_a_cache(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    text, lengths = ids(2, 12), [12, 5]
    with torch.no_grad():
        logits = ours.read(Inputs(text, lengths=torch.tensor(lengths))).logits()
        for row, length in enumerate(lengths):
            close(logits[row, :length], theirs(text[row : row + 1, :length]).logits[0])


def test_packed_documents(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    lengths = [5, 1, 11, 7]
    text = ids(1, 24)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    with torch.no_grad():
        logits = ours.read(Inputs(text, positions, documents)).logits()
        alone = [theirs(document).logits for document in text.split(lengths, 1)]
        close(logits, torch.cat(alone, 1))


def test_a_mask(pair: tuple[Any, Any]) -> None:
    """Some places hidden from others: as transformers with the same mask, but where it has windows too."""
    theirs, ours = pair
    if getattr(theirs.config, "sliding_window", None) == 5:
        pytest.skip("transformers takes a mask as it is, without the model's own window")
    seen = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(2)) < 0.6
    seen = (seen | torch.eye(12, dtype=torch.bool)).tril()
    with torch.no_grad():
        close(
            ours.read(Inputs(ids(2, 12), mask=seen)).logits(), theirs(ids(2, 12), attention_mask=seen[:, None]).logits
        )


def test_the_gradients_of_the_loss(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    text = ids(2, 17)
    targets = text[:, 1:].clone()
    targets[0, :3] = IGNORED
    loss = NextToken(plain)(ours, Batch(Inputs(text[:, :-1]), targets), At()).mean
    loss.backward()
    expected = F.cross_entropy(theirs(text[:, :-1]).logits.flatten(0, 1), targets.flatten())
    expected.backward()
    close(loss, expected)
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    if isinstance(ours, Transformer):
        found = {
            name: taken(gradient_of(ours.get_parameter(place.name)), place)
            for name, place in family_of(theirs.config.model_type).places(ours.config).items()
        }
    else:
        found = {name: parameter.grad for name, parameter in ours.stock.named_parameters()}
    assert set(found) == set(wanted)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-3, msg=partial(named, name))


@pytest.mark.parametrize("name", NATIVE)
def test_there_and_back_to_the_bit(name: str) -> None:
    kind, more = NATIVE[name]
    theirs = stock(kind, more)
    ours = from_transformers(theirs)
    back = to_transformers(ours, kind)
    assert back.config.model_type == kind
    assert back.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(weight, theirs.state_dict()[key]) for key, weight in back.state_dict().items())
    assert from_transformers(back).config == ours.config
    assert to_transformers(ours).state_dict().keys()  # and some class is found for it unasked
