"""A multi-token head: its loss is the unrolled one, it learns what comes next, and it drafts what it learnt."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shoestring.contract.batch import Inputs
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.drafters.fast_mtp import FastMTP
from shoestring.decode.made_files import read_made, write_made
from shoestring.decode.mtp_head import NAME, MTPHead, embedding_of, frequent, step_weights, train_head, unrolled_loss
from shoestring.errors import UsageError
from tests.decode.random_models import VOCABULARY, native, one_by_one, prompts, wrapped

GREEDY = Sampling(temperature=0)


def random_head(width: int = 32, kept: torch.Tensor | None = None) -> MTPHead:
    torch.manual_seed(3)
    head = MTPHead(width, width, 24, kept)
    with torch.no_grad():
        for weight in head.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return head.requires_grad_(False)


@pytest.mark.parametrize("kept", [None, torch.tensor([1, 4, 9, 20, 33])])
def test_the_loss_is_that_of_a_plain_loop_over_places(kept: torch.Tensor | None) -> None:
    model, head = native(), random_head(kept=kept)
    tokens = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    tokens[0, 5], tokens[1, 7] = 4, 20
    reading, table = model.read(Inputs(tokens)), embedding_of(model)
    weights = step_weights(3, 0.6)
    assert weights.tolist() == pytest.approx([1 / 1.96, 0.6 / 1.96, 0.36 / 1.96])
    got = unrolled_loss(head, reading.head, reading.hidden, table(tokens), tokens, weights)
    expected = 0.0
    for step in (1, 2, 3):
        losses = []
        for row in range(2):
            for place in range(9 - step - 1):
                state = reading.hidden[row, place]
                for ahead in range(1, step + 1):
                    state = head(state, table.weight[tokens[row, place + ahead]])
                logits, goal = reading.head.logits(state), int(tokens[row, place + step + 1])
                if kept is not None:
                    if goal not in kept.tolist():
                        continue
                    logits, goal = logits[kept], kept.tolist().index(goal)
                losses.append(float(-logits.log_softmax(0)[goal]))
        expected += float(weights[step - 1]) * sum(losses) / max(len(losses), 1)
    assert float(got) == pytest.approx(expected, rel=1e-5)


def test_drafts_are_what_the_head_says_step_by_step(tmp_path: Path) -> None:
    model, head = native(), random_head()
    head.save(tmp_path / "head")
    drafter = FastMTP(model, tmp_path / "head", most=3, confidence=0)
    engine = Engine(model, rows=2, drafter=drafter)
    drafter.spent()
    for text in prompts(2):
        engine.submit(Request(text, GREEDY, 6))
    engine.step()
    rows = engine.queue.rows
    drafts = drafter.propose(rows, [3, 2])
    assert drafter.spent().calls == 3
    for row, draft, count in zip(rows, drafts, (3, 2), strict=True):
        state = model.read(Inputs(torch.tensor([row.tokens[:-1]]))).hidden[0, -1]
        line = list(row.tokens)
        for _ in range(count):
            state = head(state, embedding_of(model).weight[line[-1]])
            line.append(int(drafter.model_head.logits(state).argmax()))
        assert list(draft.tokens) == line[-count:]


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, list[torch.Tensor]]:
    """A model that counts: after every token comes the next one, but for a few; and texts that it wrote itself."""
    torch.manual_seed(0)
    model = native(seed=4)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    solver = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(90):
        start = torch.randint(VOCABULARY, (16, 1))
        tokens = (start + torch.arange(24)) % VOCABULARY
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        solver.zero_grad()
        loss.backward()
        solver.step()
    model.requires_grad_(False).eval()
    engine = Engine(model, rows=16)
    written = sorted(engine.run([Request((at,), GREEDY, 23) for at in range(32)]), key=lambda each: each.number)
    texts = torch.tensor([[each.number - 1, *each.tokens] for each in written])
    return model, list(texts.split(8))


def test_a_trained_head_drafts_what_the_model_writes(
    trained: tuple[nn.Module, list[torch.Tensor]], tmp_path: Path
) -> None:
    model, texts = trained
    head, losses, charge = train_head(model, texts, steps=3, epochs=25, learning_rate=3e-3, hidden=32)  # type: ignore[arg-type]
    assert losses[-1] < 0.3 * losses[0]
    assert charge.tokens == 25 * 32 * 24
    head.save(tmp_path / "head")
    drafter = FastMTP(model, tmp_path / "head", most=3)  # type: ignore[arg-type]
    engine = Engine(model, rows=4, drafter=drafter)  # type: ignore[arg-type]
    got = {each.number: list(each.tokens) for each in engine.run([Request((at,), GREEDY, 20) for at in range(33, 37)])}
    assert got == {at - 32: one_by_one(model, (at,), 20) for at in range(33, 37)}  # type: ignore[arg-type]
    assert engine.accepted > 0.8 * engine.drafted > 0
    assert engine.passes < 12


def test_a_head_of_frequent_tokens_drafts_no_others(tmp_path: Path) -> None:
    model = native()
    kept = frequent([torch.tensor([[3, 3, 5, 5, 5, 9, 20]])], 2)
    assert kept.tolist() == [3, 5]
    random_head(kept=kept).save(tmp_path / "head")
    drafter = FastMTP(model, tmp_path / "head", most=3, confidence=0)
    engine = Engine(model, rows=2, drafter=drafter)
    engine.submit(Request((1, 2), Sampling(temperature=2.0), 9))
    engine.step()
    (draft,) = drafter.propose(engine.queue.rows, [3])
    assert set(draft.tokens) <= {3, 5}
    assert len(draft.tokens) == 3
    full = random_head()
    assert drafter.head.flops(1, drafter.model_head) < full.flops(1, drafter.model_head)


def test_wrapped_models_take_it_too(tmp_path: Path) -> None:
    model = wrapped("gpt2")
    random_head().save(tmp_path / "head")
    engine = Engine(model, rows=2, drafter=FastMTP(model, tmp_path / "head", confidence=0))
    got = {each.number: list(each.tokens) for each in engine.run([Request(text, GREEDY, 8) for text in prompts(2)])}
    assert got == {at: one_by_one(model, text, 8) for at, text in enumerate(prompts(2), start=1)}
    assert engine.drafted > 0


def test_what_does_not_suit_is_refused_in_one_line(tmp_path: Path) -> None:
    model = native()
    random_head(width=16).save(tmp_path / "narrow")
    with pytest.raises(UsageError, match=r"narrow: 'up.weight' is \[24, 16\], and \[-1, 32\] is needed"):
        FastMTP(model, tmp_path / "narrow")
    random_head(kept=torch.tensor([1, 99])).save(tmp_path / "other")
    with pytest.raises(UsageError, match="keeps tokens that the model does not know"):
        FastMTP(model, tmp_path / "other")
    tensors, _ = read_made(tmp_path / "other", NAME)
    del tensors["join.weight"]
    write_made(tmp_path / "half", NAME, tensors)
    with pytest.raises(UsageError, match=r"half has no tensor 'join\.weight'"):
        FastMTP(model, tmp_path / "half")
    with pytest.raises(UsageError, match="texts of 3 tokens are too short to predict 3 steps ahead"):
        train_head(model, [torch.zeros(1, 3, dtype=torch.int64)])
