"""Drafts that are trees: one pass checks every branch as if it stood alone, and the branch that stays is kept."""

import math
import random
from collections.abc import Callable, Sequence

import pytest
import torch

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import Inputs
from shoestring.contract.model import LanguageModel
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.drafters.staged import Staged
from shoestring.decode.row import Draft, Row
from shoestring.decode.store import PagedStore
from shoestring.decode.work import RowWork
from tests.decode.random_models import VOCABULARY, native, noisy, one_by_one, prompts, wrapped
from tests.decode.test_draft_model import row_of

GREEDY = Sampling(temperature=0)
MODELS: dict[str, Callable[[], LanguageModel]] = {
    "native": native,
    "gpt2": lambda: wrapped("gpt2"),
    "windows": lambda: wrapped("mistral"),
}


class Branching:
    """Knows what comes next, hides it among wrong branches, and is wrong itself at times."""

    most, wants_hidden = 10, False

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.chance = model, random.Random(3)

    def propose(self, rows: Sequence[Row], most: Sequence[int]) -> list[Draft]:
        return [self._tree(row, limit) for row, limit in zip(rows, most, strict=True)]

    def _tree(self, row: Row, limit: int) -> Draft:
        tokens, parents, last = list[int](), list[int](), -1
        for token in one_by_one(self.model, tuple(row.tokens), self.chance.randrange(1, 4)):
            right = self.chance.random() < 0.9
            wrong = [self.chance.randrange(VOCABULARY) for _ in range(self.chance.randrange(3))]
            options = [token if right else (token + 1) % VOCABULARY, *(each for each in wrong if each != token)]
            self.chance.shuffle(options)
            above = last
            for option in options:
                if option == token:
                    last = len(tokens)
                tokens.append(option)
                parents.append(above)
        return Draft(tokens[:limit], parents[:limit])

    def spent(self) -> Charge:
        return NOTHING

    def drop(self, row: Row) -> None:
        pass


@pytest.mark.parametrize("name", MODELS)
def test_a_pass_over_a_tree_is_a_pass_over_each_of_its_branches(name: str) -> None:
    """Logits after each node are those of the whole text up to it, read alone."""
    model, (text,) = MODELS[name](), prompts(1, seed=9)
    draft = Draft((3, 4, 5, 6, 7, 8, 9), (-1, -1, 0, 1, 3, 2, -1))
    other = row_of(2, (1, 2, 3))
    row = row_of(1, text * 2)
    store = PagedStore(model, 40, 4)
    for each in (row, other):
        each.held = 0
        store.admit(each)
        store.extend(each, len(each.tokens) + 8)
    with torch.inference_mode():
        reads, _ = store.read(
            model, [RowWork(other, (1,), outputs=False), RowWork(row, row.tokens[:-2], outputs=False)]
        )
        for each, size in ((other, 1), (row, len(row.tokens) - 2)):
            store.keep(each, 0, range(size))
            each.held = size
            store.extend(each, len(each.tokens) + 8)
        reads, _ = store.read(model, [RowWork(other, (2, 3)), RowWork(row, row.tokens[-2:], draft)])
    for place in range(-1, len(draft.tokens)):
        line, at = list[int](), place
        while at >= 0:
            line.insert(0, draft.tokens[at])
            at = draft.parent(at)
        alone = model.read(Inputs(torch.tensor([row.tokens + line]))).logits()[0, -1]
        assert torch.allclose(reads[1].logits[place + 1], alone, atol=2e-4), place
    assert torch.allclose(
        reads[0].logits[0], model.read(Inputs(torch.tensor([other.tokens]))).logits()[0, -1], atol=2e-4
    )


@pytest.mark.parametrize("name", MODELS)
def test_trees_change_no_text(name: str) -> None:
    model, texts = MODELS[name](), prompts(6)
    store = PagedStore(model, 60, 4)
    engine = Engine(model, store=store, rows=4, tokens=40, drafter=Branching(model))
    got = {each.number: list(each.tokens) for each in engine.run([Request(text, GREEDY, 16) for text in texts])}
    assert [got[number] for number in range(1, 7)] == [one_by_one(model, text, 16) for text in texts]
    assert engine.accepted > 30
    assert engine.drafted > 1.5 * engine.accepted
    store.check()
    assert store.free == store.capacity


def reference_tree(
    model: LanguageModel, text: tuple[int, ...], most: int, passes: int, branch: int
) -> set[tuple[int, ...]]:
    """From the description: after each pass the most probable lines stay, `most / passes` more than were read."""
    scores: dict[tuple[int, ...], float] = {}
    read, chosen = set[tuple[int, ...]](), set[tuple[int, ...]]()
    for number in range(passes):
        for line in sorted(chosen | {()}, key=len):
            if line in read:
                continue
            read.add(line)
            log_p = model.read(Inputs(torch.tensor([list(text + line)]))).logits()[0, -1].double().log_softmax(0)
            for token in log_p.topk(branch).indices.tolist():
                scores[*line, token] = scores.get(line, 0.0) + float(log_p[token])
        count = most if number == passes - 1 else min(most, len(read) - 1 + math.ceil(most / passes))
        chosen = set(sorted(scores, key=lambda line: -scores[line])[:count])
    return chosen


@pytest.mark.parametrize("options", [(8, 3, 3), (12, 2, 4), (5, 5, 2)])
def test_the_tree_is_that_of_the_most_probable_lines(options: tuple[int, int, int]) -> None:
    most, passes, branch = options
    model = native()
    for text in ((1, 2, 3, 4), (5, 30, 11)):  # nothing in them repeats, so that no n-gram helps
        drafter = Staged(model, model, most=most, passes=passes, branch=branch, least=0)
        (draft,) = drafter.propose([row_of(1, text)], [most])
        lines = set()
        for place in range(len(draft.tokens)):
            line = list[int]()
            while place >= 0:
                line.insert(0, draft.tokens[place])
                place = draft.parent(place)
            lines.add(tuple(line))
        assert lines == reference_tree(model, text, most, passes, branch)


def test_n_grams_spare_the_draft_model_passes() -> None:
    """A line that stands in the text already is judged in the first pass, and what is likely of it is in the tree."""
    model = native()
    text = (*prompts(12)[0], *one_by_one(model, prompts(12)[0], 20))
    assert text[-4:-2] == text[-2:]  # it goes round in circles
    drafter = Staged(model, model, most=6, passes=1, branch=1, least=0)
    (draft,) = drafter.propose([row_of(1, text)], [6])
    assert list(draft.tokens) == one_by_one(model, text, 6)
    assert drafter.spent().calls == 2  # the first reads the older part of the text


def test_a_sampled_text_is_drafted_by_its_own_draws() -> None:
    model, warm = native(), Sampling(temperature=1.5, seed=2, presence_penalty=0.3)
    engine = Engine(model, rows=2, drafter=Staged(model, model, most=6, passes=6, branch=1, least=0))
    (got,) = engine.run([Request((1, 2), warm, 20)])
    (plain,) = Engine(model, rows=1).run([Request((1, 2), warm, 20)])
    assert got.tokens == plain.tokens
    assert engine.passes < 10  # of 20 tokens: the choice is always in the tree


def test_its_cache_holds_nothing_of_branches() -> None:
    model = native()
    drafter = Staged(noisy(model), model, most=8, passes=3, least=0)
    row = row_of(1, (1, 2, 3, 4))
    drafter.propose([row], [8])
    assert drafter.state.store.cache.held[1] == 4
    row.tokens.append(7)
    drafter.propose([row], [8])
    assert drafter.state.store.cache.held[1] == 5
    drafter.drop(row)
    assert drafter.state.store.free == drafter.state.store.capacity
