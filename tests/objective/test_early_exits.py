"""Exits after layers are their formula, on models of our own and of others, and what they learnt drafts."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.model import LanguageModule
from shoestring.contract.objective import At
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.drafters.layer_skip import LayerSkip
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.model.wrapped import Wrapped
from shoestring.objective.cross_entropy import plain
from shoestring.objective.early_exits import EarlyExits

VOCABULARY = 12


def native(layers: int = 6) -> Transformer:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"layers": layers, "width": 32, "heads": 4, "vocabulary": VOCABULARY, "context": 48}
    made = Transformer(ModelConfig(**sizes, output_scale=0.7))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return made


def wrapped() -> Wrapped:
    from transformers import AutoModelForCausalLM, GPT2Config

    torch.manual_seed(1)
    sizes = {"n_layer": 6, "n_embd": 32, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 48}
    return Wrapped(AutoModelForCausalLM.from_config(GPT2Config(**sizes), attn_implementation="eager"))


def text(rows: int, length: int, seed: int) -> torch.Tensor:
    """Counting up by one or two."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(VOCABULARY, (rows, 1), generator=generator)
    steps = torch.randint(1, 3, (rows, 1), generator=generator)
    return (starts + steps * torch.arange(length)) % VOCABULARY


def batch(tokens: torch.Tensor) -> Batch:
    return Batch(Inputs(tokens[:, :-1]), tokens[:, 1:].contiguous())


@pytest.mark.parametrize("kind", ["native", "wrapped"])
def test_the_loss_is_its_formula_with_exits_in_turn(kind: str) -> None:
    made: Any = native() if kind == "native" else wrapped()
    given = batch(text(2, 9, seed=0))
    names = made.anatomy().layers
    tapped = made.read(given.inputs, tap=names).tapped
    if kind == "native":
        matrix, norm = made.embedding.weight, lambda x: 0.7 * F.rms_norm(x, (32,), made.norm.weight, made.norm.epsilon)
    else:
        matrix, norm = made.stock.lm_head.weight, made.stock.transformer.ln_f
    for step, exits in ((0, (2, 4)), (1, (1, 3))):
        loss = EarlyExits(plain, scale=0.3, every=2)(made, given, At(step=step))
        e = {layer: 0.3 * sum(range(layer + 1)) for layer in exits} | {5: 5 + 0.3 * sum(range(5))}
        each = {
            layer: F.cross_entropy((norm(tapped[names[layer]]) @ matrix.T).flatten(0, 1), given.targets.flatten())
            for layer in e
        }
        torch.testing.assert_close(loss.mean, sum(e[layer] * each[layer] for layer in e) / sum(e.values()))
        torch.testing.assert_close(loss.parts["next_token"], each[5].detach())


def test_layers_that_learnt_to_leave_early_draft_what_the_model_writes() -> None:
    made = native(4)
    solver, objective = torch.optim.AdamW(made.parameters(), lr=5e-3), EarlyExits(plain, scale=1.0, every=2)
    for step in range(40):
        solver.zero_grad()
        objective(made, batch(text(12, 20, seed=step)), At(step=step)).mean.backward()
        solver.step()
    made.requires_grad_(False).eval()
    asked = [Request(tuple(row[:6].tolist()), Sampling(temperature=0), 20) for row in text(3, 8, seed=99)]
    alone = [each.tokens for each in Engine(made, rows=3).run(asked)]
    engine = Engine(made, rows=3, drafter=LayerSkip(made, layers=2))
    assert [each.tokens for each in engine.run(asked)] == alone
    assert engine.accepted > 0.6 * engine.drafted > 10


def test_drafting_layers_are_the_models_own() -> None:
    made = native()
    drafter = LayerSkip(made, layers=2)
    draft = drafter.state.model
    assert isinstance(draft, LanguageModule)
    assert draft.about.layers == 2
    assert made.about.layers == 6
    assert {id(p) for p in draft.parameters()} < {id(p) for p in made.parameters()}
    with pytest.raises(UsageError, match="6 of 6 layers are no draft"):
        LayerSkip(made, layers=6)
