"""Drafts of a smaller model: chosen as the model would choose, read once, paid for, and forgotten with their rows."""

from collections.abc import Sequence

import pytest
import torch

from shoestring.config import build
from shoestring.contract.batch import Inputs
from shoestring.contract.cost import Shape
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.draft_state import DraftState
from shoestring.decode.drafters.draft_model import DraftModel
from shoestring.decode.row import Draft, Row
from shoestring.decode.separate_store import SeparateStore
from shoestring.decode.store import PagedStore
from shoestring.decode.supplied import supplied
from shoestring.decode.work import RowWork
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from tests.decode.random_models import CONTEXT, VOCABULARY, native, one_by_one, prompts

GREEDY = Sampling(temperature=0)


def row_of(number: int, tokens: Sequence[int], sampling: Sampling = GREEDY, ticket: int | None = None) -> Row:
    """A row that decodes after these tokens."""
    made = Row(number, ticket or number, Request(tuple(tokens[:-1]), sampling), 0, list(tokens), 0.0)
    made.held, made.running = len(tokens) - 1, True
    return made


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.7, top_k=20, presence_penalty=0.5, seed=4)])
def test_the_model_itself_drafts_just_what_it_writes(sampling: Sampling) -> None:
    model = native()
    drafter = DraftModel(model, model, most=4, confidence=0)
    engine = Engine(model, rows=3, drafter=drafter)
    list(engine.run([Request(text, sampling, 16) for text in prompts(3)]))
    assert engine.drafted == engine.accepted > 3 * 10
    assert drafter.state.store.free == drafter.state.store.capacity


def test_a_draft_ends_where_the_draft_model_is_not_sure() -> None:
    """The reference: greedy decoding of the draft model, up to the first place where its likeliest token has less than this."""
    model, most = native(), 8
    for tokens in prompts(12, seed=4):
        text, expected = list(tokens), list[int]()
        while len(expected) < most:
            chances = model.read(Inputs(torch.tensor([text]))).logits()[0, -1].softmax(0)
            if float(chances.max()) < 0.25:
                break
            expected.append(int(chances.argmax()))
            text.append(expected[-1])
        drafter = DraftModel(model, model, most=most, confidence=0.25)
        (draft,) = drafter.propose([row_of(1, tokens)], [most])
        assert list(draft.tokens) == expected


def test_no_token_is_read_twice_but_those_drafted_in_vain() -> None:
    model = native()
    drafter = DraftModel(model, model, most=3, confidence=0)
    row = row_of(1, (1, 2, 3, 4, 5))
    (draft,) = drafter.propose([row], [3])
    charge = drafter.spent()
    assert (charge.read, charge.calls) == (5 + 2, 3)  # nobody reads the last of a draft
    assert charge.flops == model.cost(Shape(1, 5, outputs=1)).flops + sum(
        model.cost(Shape(1, 1, past)).flops for past in (5, 6)
    )
    row.tokens += [*draft.tokens, 9]  # all stay
    drafter.propose([row], [1])
    assert drafter.spent().read == 2
    (draft,) = drafter.propose([row], [3])
    drafter.spent()
    row.tokens += [draft.tokens[0], (draft.tokens[1] + 1) % VOCABULARY]  # the second was refused
    (again,) = drafter.propose([row], [1])
    assert drafter.spent().read == 1
    assert list(again.tokens) == one_by_one(model, tuple(row.tokens), 1)


def test_rows_of_any_lengths_are_read_in_one_pass_and_limits_are_kept() -> None:
    model = native()
    drafter = DraftModel(model, model, most=4, confidence=0)
    texts = prompts(5, seed=2)
    rows = [row_of(number, text) for number, text in enumerate(texts, start=1)]
    drafts = drafter.propose(rows, [4, 0, 1, 9, 2])
    assert [len(draft.tokens) for draft in drafts] == [4, 0, 1, 4, 2]
    assert drafter.spent().calls == 4
    for text, draft in zip(texts, drafts, strict=True):
        assert list(draft.tokens) == one_by_one(model, text, len(draft.tokens))


def test_answers_to_one_prompt_share_what_is_read_of_it() -> None:
    model = native()
    drafter = DraftModel(model, model, most=2, confidence=0)
    prompt = [number % VOCABULARY for number in range(50)]
    rows = [row_of(number, [*prompt, number], ticket=1) for number in range(1, 5)]
    drafts = drafter.propose(rows, [2] * 4)
    # the prompt once, the last token of each, and one of each draft
    assert drafter.spent().read == 50 + 4 + 4
    for row, draft in zip(rows, drafts, strict=True):
        assert list(draft.tokens) == one_by_one(model, tuple(row.tokens), 2)
    drafter.state.store.check()


def test_what_has_no_room_is_not_drafted_and_idle_rows_make_room() -> None:
    model = native()
    state = DraftState(model, model, room=24, block=4)
    long, short = row_of(1, range(20)), row_of(2, range(5, 12))
    assert set(state.ready([long], {1: 2})) == {1}
    assert set(state.ready([short], {2: 2})) == {2}  # for which the first was forgotten
    assert set(state.ready([short, long], {1: 4, 2: 2})) == {2}
    state.store.check()
    state.drop(short)
    state.drop(long)
    assert state.store.free == state.store.capacity


def test_a_long_text_is_read_in_pieces_and_none_is_drafted_past_the_draft_models_context() -> None:
    model, short = native(context=128), native(context=CONTEXT)
    drafter = DraftModel(model, model, most=2, confidence=0)
    drafter.state.tokens = 40
    tokens = [number * 7 % VOCABULARY for number in range(110)]
    (draft,) = drafter.propose([row_of(1, tokens)], [2])
    assert list(draft.tokens) == one_by_one(model, tuple(tokens), 2)
    assert drafter.spent().calls == 2 + 2
    narrow = DraftModel(short, model, most=4, confidence=0)
    (one, none) = narrow.propose([row_of(1, tokens[: CONTEXT - 1]), row_of(2, tokens[: CONTEXT + 1])], [4, 4])
    assert (len(one.tokens), len(none.tokens)) == (2, 0)


def test_what_cannot_draft_is_refused_in_one_line() -> None:
    model = native()

    class Other:
        about = model.about.__class__(VOCABULARY + 1, 8, 8, 1)

    with pytest.raises(UsageError, match=r"the draft model knows 41 tokens, and the model 40: .* the same vocabulary"):
        DraftModel(Other(), model)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the drafter 'draft_model' needs a draft model, and none is given"):
        supplied("drafter", "draft_model", {"target": lambda: model})
    with pytest.raises(ValueError, match="draft_model: confidence"):
        DraftModel(model, model, confidence=2)


@pytest.mark.parametrize("mixer", ["attention", "lightning", "mamba2"])
def test_a_model_that_reads_one_row_at_a_time_forgets_drafts_that_are_refused(mixer: str) -> None:
    """By cropping, or from a snapshot where a layer has a running state: the text is the one without drafts."""
    torch.manual_seed(5)
    sizes = {"layers": 2, "width": 32, "heads": 2, "vocabulary": VOCABULARY, "context": CONTEXT}
    target = Transformer(build(ModelConfig, {**sizes, "pattern": [{"at": "0", "token_mixer": mixer}]})).eval()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.normal_(std=0.5) if parameter.ndim > 1 else None
    requests = [Request((1, 2), GREEDY, 12, samples=2), Request((3, 4, 5, 3, 4), GREEDY, 9)]
    plain = Engine(target, store=SeparateStore(target, 8 * CONTEXT, 4))
    wanted = {(each.number, each.sample): each.tokens for each in plain.run(requests)}
    drafter = DraftModel(native(), target, confidence=0)
    engine = Engine(target, store=SeparateStore(target, 8 * CONTEXT, 4), drafter=drafter)
    assert {(each.number, each.sample): each.tokens for each in engine.run(requests)} == wanted
    assert 0 < engine.drafted > engine.accepted


def test_a_model_that_reads_tokens_in_order_takes_no_tree_of_drafts() -> None:
    model = native()
    store, row = SeparateStore(model, CONTEXT), row_of(1, (1, 2))
    row.held = store.admit(row)
    store.extend(row, 4)
    with pytest.raises(UsageError, match="no trees of drafts: give a drafter of lines"):
        store.read(model, [RowWork(row, (1, 2), Draft((3, 4), (-1, -1)))])


def test_a_shared_block_that_was_registered_is_not_written_over_in_place() -> None:
    """Two answers part within a block that another text may still share."""
    model = native()
    store = PagedStore(model, 6, 4)
    first, second = row_of(1, range(9)), row_of(2, (0, 1, 2, 3, 9, 9, 9))
    first.held = store.admit(first)
    store.extend(first, 8)
    store.read(model, [RowWork(first, first.tokens[:8], outputs=False)])
    store.keep(first, 0, range(8))
    store.fork(first, second)
    store.drop(first)
    second.held = 5
    store.keep(second, 5, ())
    store.extend(second, 7)
    store.check()
    third = row_of(3, range(9))
    assert store.admit(third) == 4  # the second block is the other answer's alone
