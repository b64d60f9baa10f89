"""Attention converted to mixers with a running state: what stays the same, what is learnt, what a cache holds."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from shoestring.config import Choice
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.edit import Edit, Evidence
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer

CONFIG = ModelConfig(layers=3, width=16, heads=4, key_value_heads=2, vocabulary=30, context=24)


def model() -> Transformer:
    torch.manual_seed(1)
    made = Transformer(CONFIG).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=parameter.shape[1] ** -0.5)
    return made


def edit(name: str, **options: Any) -> Edit:
    made: Edit = Choice.of("surgery", name, kind="edit", **options).build()
    return made


def text(documents: bool = False) -> tuple[Batch, ...]:
    torch.manual_seed(2)
    tokens = torch.randint(30, (4, 24))
    parts = torch.tensor([0] * 9 + [1] * 15).expand(4, -1) if documents else None
    return tuple(Batch(Inputs(tokens, None, parts), tokens).split(2))


def test_a_window_as_long_as_the_text_changes_nothing() -> None:
    made = model()
    tokens = torch.randint(30, (2, 24))
    with torch.no_grad():
        before = made(tokens)
        one = edit("lolcats", window=24, features=4, steps=0)
        after = one.apply(made, one.decide(made, Evidence(seed=3)))
        torch.testing.assert_close(after(tokens), before)
        assert all(block.recurrent for block in made.blocks)


@pytest.mark.parametrize("documents", [False, True])
def test_maps_learn_what_attention_writes_where_softmax_layers_lie_below(documents: bool) -> None:
    made, batches = model(), text(documents)
    one = edit("lolcats", at="1:", window=3, features=8, steps=60, lr=0.05)
    decision = one.decide(made, Evidence(seed=3, text=batches))
    errors = decision.values["errors"]
    assert set(errors) == {"1", "2"}
    assert all(after < 0.7 * before for before, after in errors.values())
    mixer = made.anatomy().mixers_from_attention("2", "lolcats", {"window": 3, "features": 8})[2]
    kept = {name.removeprefix("2."): value for name, value in decision.tensors.items() if name.startswith("2.")}
    mixer.load_state_dict(kept, strict=False)
    mixer.double()
    attention: Any = made.blocks[2].token_mixer
    total = 0.0
    with torch.no_grad():
        for batch in batches:
            reading = made.read(batch.inputs, tap=["blocks.2.token_norm", "blocks.2.token_mixer"])
            x, wanted = reading.tapped.values()
            tables = made.rotary(0, 24, None)
            found = mixer(x, *tables, documents=batch.inputs.documents)
            # the output's projection has an inverse, so that what it reads can be compared
            back = torch.linalg.inv(attention.output.weight).T
            total += float(F.mse_loss(found @ back, wanted @ back) / (wanted @ back).square().mean()) / len(batches)
    assert errors["2"][1] == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize(("name", "options"), [("lolcats", {"steps": 0, "window": 4}), ("supra", {})])
def test_a_converted_model_holds_as_much_of_a_long_text_as_of_a_short_one(name: str, options: dict[str, Any]) -> None:
    made = model()
    one = edit(name, **options)
    weights = {key: value.clone() for key, value in made.state_dict().items()}
    one.apply(made, one.decide(made, Evidence()))
    assert made.new_cache(2, 24).nbytes == made.new_cache(2, 8).nbytes
    kept = made.state_dict()
    assert all(torch.equal(kept[key], value) for key, value in weights.items())
    with pytest.raises(UsageError, match=f"layer 0 has the token mixer {name}"):
        one.decide(made, Evidence())


def test_lolcats_needs_text_to_train_its_maps() -> None:
    assert edit("lolcats").needs == {"text"}
    assert edit("lolcats", steps=0).needs == frozenset()
    with pytest.raises(UsageError, match="looks at text"):
        edit("lolcats").decide(model(), Evidence())
