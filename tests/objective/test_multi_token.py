"""Multi-token prediction is its formula, trains with the model, and what it learnt drafts."""

import pytest
import torch
from torch.nn import functional as F

from shoestring.config import Choice, build
from shoestring.contract.batch import IGNORED, Batch, Inputs
from shoestring.contract.edit import Decision, Edit, Evidence
from shoestring.contract.multi_token import ATTRIBUTE, TokenHead, heads_of
from shoestring.contract.objective import At
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.drafters.multi_token import MultiTokenDrafter
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.objective.cross_entropy import plain
from shoestring.objective.multi_token import MultiToken

VOCABULARY = 12


def model(ahead: int = 3) -> Transformer:
    torch.manual_seed(1)
    made = Transformer(
        build(ModelConfig, {"layers": 2, "width": 32, "heads": 4, "vocabulary": VOCABULARY, "context": 48})
    )
    edit: Edit = Choice.of("surgery", "multi_token_heads", kind="edit", ahead=ahead).build()
    decision = edit.decide(made, Evidence())
    again = Decision(dict(decision.values))
    edited = edit.apply(made, again)
    assert isinstance(edited, Transformer)
    return edited


def text(rows: int, length: int, seed: int) -> torch.Tensor:
    """Counting up and down: what comes next needs the last two tokens."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(VOCABULARY, (rows, 1), generator=generator)
    steps = torch.randint(1, 3, (rows, 1), generator=generator)
    return (starts + steps * torch.arange(length)) % VOCABULARY


def batch(tokens: torch.Tensor, **more: torch.Tensor) -> Batch:
    return Batch(Inputs(tokens[:, :-1], **more), tokens[:, 1:].contiguous())


def test_the_loss_is_its_formula_and_ends_with_each_document() -> None:
    made = model()
    with torch.no_grad():
        for head in heads_of(made).heads:
            assert isinstance(head, TokenHead)
            torch.nn.init.normal_(head.down.weight, std=0.3)
    tokens = text(2, 9, seed=0)
    documents = torch.tensor([[0] * 8, [0] * 3 + [1] * 5])
    given = batch(tokens, documents=documents)
    objective = MultiToken(plain, weight=0.5)
    loss = objective(made, given, At())
    hidden = made.read(given.inputs).hidden
    matrix, expected = made.embedding.weight, 0.0
    for ahead in (1, 2, 3):
        losses = []
        for row in range(2):
            for place in range(8 - ahead + 1):
                if ahead > 1 and documents[row, place] != documents[row, place + ahead - 1]:
                    continue
                z = hidden[row, place]
                if ahead > 1:
                    head = heads_of(made).heads[ahead - 2]
                    assert isinstance(head, TokenHead)
                    z = F.rms_norm(z + head.down.weight @ F.silu(head.up.weight @ z), (32,), head.norm.weight)
                losses.append(-(matrix @ z).log_softmax(0)[tokens[row, place + ahead]])
        assert len(losses) == {1: 16, 2: 13, 3: 10}[ahead]
        expected += (1.0 if ahead == 1 else 0.5) * float(torch.stack(losses).mean().detach())
    assert float(loss.mean.detach()) == pytest.approx(expected, rel=1e-5)
    assert set(loss.parts) == {"next_token", "token_2", "token_3"}
    assert objective.count(given) == 16
    own = made.read(given.inputs).head
    from shoestring.contract.cost import Shape

    added = loss.spent["model"].flops - made.cost(Shape(2, 8, backward=True)).flops
    assert added == 3 * (2 * 16 * 2 * 2 * 32 * 64 + own.flops(14) + own.flops(12))


def test_heads_that_were_trained_with_the_model_draft_what_it_writes() -> None:
    made = model(ahead=4)
    solver = torch.optim.AdamW(made.parameters(), lr=1e-2)
    objective, losses = MultiToken(plain), []
    for step in range(60):
        loss = objective(made, batch(text(16, 24, seed=step)), At())
        solver.zero_grad()
        loss.mean.backward()
        solver.step()
        losses.append(float(loss.mean.detach()))
    assert losses[-1] < 0.4 * losses[0]
    made.requires_grad_(False).eval()
    asked = [tuple(row[:6].tolist()) for row in text(4, 8, seed=99)]
    greedy = Sampling(temperature=0)
    alone = [each.tokens for each in Engine(made, rows=1).run([Request(asked[0], greedy, 20)])]
    engine = Engine(made, rows=4, drafter=MultiTokenDrafter(made))
    got = {each.number: each.tokens for each in engine.run([Request(each, greedy, 20) for each in asked])}
    assert got[1] == alone[0]
    assert engine.accepted > 0.7 * engine.drafted > 20
    assert engine.written / engine.passes > 2 * 4 / 2  # four rows, two tokens or more a pass


def test_what_does_not_suit_is_refused_in_one_line() -> None:
    made = model()
    with pytest.raises(UsageError, match="has such heads already"):
        Choice.of("surgery", "multi_token_heads", kind="edit").build().decide(made, Evidence())
    given = batch(text(2, 4, seed=0))
    with pytest.raises(UsageError, match="rows of 3 tokens are too short to predict 3 ahead"):
        MultiToken(plain)(made, given, At())
    with pytest.raises(UsageError, match="targets that all count the same"):
        MultiToken(plain)(made, Batch(given.inputs, given.targets, torch.ones(2, 3)), At())
    delattr(made, ATTRIBUTE)
    with pytest.raises(UsageError, match="no heads for later tokens: train one with"):
        MultiToken(plain)(made, given, At())
    assert IGNORED not in given.targets
