"""A stream that runs ahead: it is its formula, it learns to say what the whole model says, and what it drafts stays."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from shoestring.contract.batch import Inputs
from shoestring.contract.cost import Shape
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.accelerated import Accelerated, Accelerators, train_accelerators
from shoestring.decode.drafters.m2r2 import M2R2
from shoestring.errors import UsageError
from shoestring.model import Transformer
from tests.decode.random_models import CONTEXT, native, one_by_one, prompts, wrapped
from tests.decode.test_depths import deep

GREEDY = Sampling(temperature=0)


def test_the_fast_stream_is_its_formula() -> None:
    model = deep(4)
    torch.manual_seed(0)
    accelerators = Accelerators(3, 32, 5)
    torch.nn.init.normal_(accelerators.up, std=0.2)
    tokens = torch.tensor([prompts(1)[0]])
    cos, sin = model.rotary(0, tokens.shape[1], None)
    slow = fast = model.embedding(tokens)
    for layer in range(3):
        after = model.blocks[layer](slow, cos, sin)
        normed = fast / (fast.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
        low = F.silu(torch.einsum("btw,rw->btr", normed, accelerators.down[layer]))
        fast = fast + (after - slow) + torch.einsum("btr,wr->btw", low, accelerators.up[layer])
        slow = after
    made = Accelerated(model, accelerators)
    reading = made.read(Inputs(tokens))
    assert torch.allclose(reading.hidden, model.norm(fast), atol=1e-4)
    places = tokens.shape[1]
    own = sum(block.flops(Shape(1, places)) for block in model.blocks[:3])  # type: ignore[operator]
    assert reading.cost.flops == own + 2 * places * 3 * 2 * 5 * 32
    assert made.cost(Shape(1, places)).flops == reading.cost.flops + reading.head.flops(places)
    with torch.no_grad():
        accelerators.up.zero_()  # plain early exit
    assert torch.allclose(made.read(Inputs(tokens)).hidden, model.norm(slow), atol=1e-4)


def trained_pair(model: Transformer) -> tuple[Accelerated, Accelerated]:
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(40, (8, 16), generator=generator) for _ in range(6)]
    made, losses, charge = train_accelerators(model, texts, layers=4, rank=8, epochs=5, learning_rate=1e-2)
    assert losses[-1] < 0.7 * losses[0]
    assert charge.tokens == 5 * 6 * 8 * 16
    return made, Accelerated(model, Accelerators(4, 32, 1))


def test_it_comes_nearer_to_the_whole_model_than_an_early_exit_and_drafts_with_it(tmp_path: Path) -> None:
    model = deep(6)
    with torch.no_grad():
        for block in (4, 5):  # the last layers change less, as those of trained models do
            for mixer in ("token_mixer", "channel_mixer"):
                model.get_parameter(f"blocks.{block}.{mixer}.output.weight").mul_(0.5)
    made, plain = trained_pair(model)
    tokens = torch.randint(40, (8, 24), generator=torch.Generator().manual_seed(9))
    whole = model.read(Inputs(tokens)).logits().argmax(-1)
    agreed = [float((each.read(Inputs(tokens)).logits().argmax(-1) == whole).float().mean()) for each in (plain, made)]
    assert agreed[1] > agreed[0]
    stayed = []
    for name, each in (("plain", plain), ("made", made)):
        each.save(tmp_path / name)
        engine = Engine(model, rows=3, room=6 * CONTEXT, drafter=M2R2(model, tmp_path / name, confidence=0.0))
        asked = prompts(4, seed=4)
        got = {one.number: list(one.tokens) for one in engine.run([Request(text, GREEDY, 16) for text in asked])}
        assert got == {at: one_by_one(model, text, 16) for at, text in enumerate(asked, start=1)}
        stayed.append(engine.accepted / engine.drafted)
    assert stayed[1] > stayed[0]


def test_what_does_not_suit_is_refused_in_one_line(tmp_path: Path) -> None:
    model = native()
    with pytest.raises(UsageError, match="2 of 2 layers are no part of a model"):
        Accelerated(model, Accelerators(2, 32, 4))
    with pytest.raises(UsageError, match="needs a native model, or a bridged one"):
        Accelerated(wrapped("gpt2"), Accelerators(1, 32, 4))
    with pytest.raises(UsageError, match="no taps and no depth"):
        Accelerated(model, Accelerators(1, 32, 4)).read(Inputs(torch.tensor([[1]])), tap=["norm"])
    Accelerated(model, Accelerators(1, 32, 4)).save(tmp_path / "one")
    with pytest.raises(UsageError, match="one was not made for 'fast_mtp'"):
        from shoestring.decode.made_files import read_made

        read_made(tmp_path / "one", "fast_mtp")
