"""Texts that a model writes itself come in order with their cost, make a corpus, and a draft of them is judged."""

import json
from pathlib import Path

import pytest
import torch

from shoestring.config import build
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.objective import At
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.drafters.draft_model import DraftModel
from shoestring.decode.own_texts import DraftReport, draft_report, own_texts, save_texts
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.objective.cross_entropy import plain
from shoestring.objective.next_token import NextToken
from tests.decode.random_models import CONTEXT, VOCABULARY, native, one_by_one, prompts

GREEDY = Sampling(temperature=0)


def test_texts_come_in_the_order_of_their_prompts() -> None:
    model, asked = native(), prompts(7)
    engine = Engine(model, rows=3)
    engine.submit(Request((1, 2), GREEDY, 3))  # of somebody else
    got = list(own_texts(engine, asked, 10, GREEDY))
    assert [text.prompt for text in got] == asked
    assert [list(text.answer) for text in got] == [one_by_one(model, text, 10) for text in asked]
    assert all(text.charge.written == 10 for text in got)
    several = list(own_texts(engine, asked[:2], 6, Sampling(temperature=1.5), samples=3))
    assert [text.prompt for text in several] == [asked[0]] * 3 + [asked[1]] * 3
    assert len({text.answer for text in several}) == 6


def test_they_make_a_corpus(tmp_path: Path) -> None:
    engine = Engine(native(), rows=3)
    path = tmp_path / "texts.jsonl"
    count, charge = save_texts(path, own_texts(engine, prompts(4), 5, GREEDY), lambda ids: " ".join(map(str, ids)))
    lines = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    assert (count, charge.written) == (4, 20)
    expected = [(*text, *one_by_one(native(), text, 5)) for text in prompts(4)]
    assert [tuple(map(int, line.split())) for line in lines] == expected
    with pytest.raises(UsageError, match="no text to align a draft with"):
        save_texts(path, [], str)


def test_a_draft_is_judged_by_what_stays() -> None:
    model = native()
    same = draft_report(Engine(model, drafter=DraftModel(model, model, most=4, confidence=0)), prompts(3), 16, GREEDY)
    # a pass for the prompt and its first token, then three of five tokens: 1 + 5 + 5 + 5
    assert (same.rate, same.block) == (1.0, 4.0)
    assert 0.5 < same.flops < 1
    other = draft_report(
        Engine(model, drafter=DraftModel(native(seed=9), model, most=4, confidence=0)), prompts(3), 16, GREEDY
    )
    assert other.rate < 0.3
    assert 1 <= other.block < same.block
    with pytest.raises(UsageError, match="nothing to judge a draft by"):
        draft_report(Engine(model), [], 4)


def small() -> Transformer:
    torch.manual_seed(11)
    sizes = {"layers": 1, "width": 32, "heads": 2, "vocabulary": VOCABULARY, "context": CONTEXT}
    return Transformer(build(ModelConfig, sizes))


def learn(draft: Transformer, texts: torch.Tensor, steps: int, rate: float) -> None:
    """A few steps of next-token prediction on rows of text."""
    solver, objective = torch.optim.AdamW(draft.parameters(), lr=rate), NextToken(plain)
    for step in range(steps):
        rows = texts[step % 4 :: 4]
        loss = objective(draft, Batch(Inputs(rows[:, :-1]), rows[:, 1:].contiguous()), At())
        solver.zero_grad()
        loss.mean.backward()
        solver.step()


def test_a_small_draft_is_pretrained_and_aligned_and_then_more_of_it_stays() -> None:
    """FastDraft on tiny models: a target that counts, and a draft that has learnt other text of the same tokens."""
    target = small()
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(VOCABULARY, (32, 1), generator=generator)
    learn(target, (starts + 3 * torch.arange(16)) % VOCABULARY, 50, 1e-2)  # counts by threes
    draft = small()
    other = torch.randint(VOCABULARY, (32, 1), generator=generator)
    learn(draft, (other + torch.arange(16)) % VOCABULARY, 20, 1e-2)  # pre-trained on counting by ones
    for each in (target, draft):
        each.eval()
    asked = [
        tuple((at + 3 * torch.arange(4) + seed).remainder(VOCABULARY).tolist()) for seed, at in enumerate((1, 9, 20))
    ]

    def judged() -> DraftReport:
        return draft_report(Engine(target, drafter=DraftModel(draft, target, most=3, confidence=0)), asked, 16, GREEDY)

    before = judged()
    written = list(
        own_texts(Engine(target, rows=8), [(at,) for at in range(VOCABULARY)], 15, Sampling(temperature=0.5))
    )
    rows = torch.tensor([[*text.prompt, *text.answer] for text in written])
    draft.train()
    learn(draft, rows, 30, 1e-2)
    draft.eval()
    after = judged()
    assert after.rate > max(0.8, 2 * before.rate)
    assert after.block > 1.5 * before.block
    assert after.flops > 0
