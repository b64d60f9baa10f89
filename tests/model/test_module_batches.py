"""Module-based batching writes what batches one by one write, and asks for experts once for all."""

from typing import Any

import pytest
import torch

from shoestring.config import build
from shoestring.contract.batch import Inputs
from shoestring.decode.expert_store import ExpertConfig, put_experts_away
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.model.module_batches import ModuleBatches, Profile, tokens_to_gather

SIZES: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "vocabulary": 30, "context": 24}
MOE = {"name": "moe", "experts": 4}


def made(**more: Any) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(build(ModelConfig, {**SIZES, "channel_mixer": MOE, **more})).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


@pytest.mark.parametrize(
    "change", [{}, {"pattern": [{"at": "1", "token_mixer": "lightning"}], "channel_mixer": "swiglu"}]
)
def test_it_writes_what_each_text_alone_gets(change: dict[str, Any]) -> None:
    model = made(**change)
    prompts = [[3, 4, 5], [7], [9, 1], [2, 2, 8, 6], [11, 12]]
    wanted, ends = [], {13, 21, 5}
    for prompt in prompts:
        text = list(prompt)
        for _ in range(6):
            text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
            if text[-1] in ends:
                break
        wanted.append(text[len(prompt) :])
    found, cost = ModuleBatches(rows=2, tokens=3).write(model, prompts, 6, ends=ends)
    assert found == wanted
    assert cost.flops > 0


def test_experts_are_fetched_once_for_all_rows() -> None:
    text = torch.randint(30, (6, 5), generator=torch.Generator().manual_seed(1))
    batches = [Inputs(part) for part in text.split(2)]
    read, hidden = [], []
    for together in (True, False):
        model = made()
        store = put_experts_away(model, ExpertConfig(memory="25%"))
        assert store is not None
        readings = (
            ModuleBatches().read(model, batches, [None] * 3) if together else [model.read(one) for one in batches]
        )
        read.append(store.read)
        whole = store.whole
        hidden.append(torch.cat([one.hidden for one in readings]))
    torch.testing.assert_close(*hidden)
    assert read[0] == whole
    assert read[1] > 2 * whole


def test_as_many_tokens_are_gathered_as_fetching_takes() -> None:
    profile = Profile(read=0.5, attention=0.001, experts=0.003, held=1000)
    assert tokens_to_gather(profile, 1e9) == 125
    assert tokens_to_gather(profile, 50_000) == 50
    with pytest.raises(UsageError, match="hold no token"):
        tokens_to_gather(profile, 10)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"residual": "parallel"}, "layer 0 does not mix its tokens first"),
        ({"channel_mixer": {**MOE, "before_attention": True}}, "layer 0 does not mix its tokens first"),
        ({"span": [{"at": "0:2", "name": "loop"}]}, "without spans"),
    ],
)
def test_other_models_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ModuleBatches().read(made(**change), [Inputs(torch.zeros(1, 2, dtype=torch.int64))], [None])
