"""Many answers at once are those that each would have alone, whatever is drafted, shared, cancelled or preempted."""

import functools
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shoestring.config import build
from shoestring.contract.batch import Inputs
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModel
from shoestring.contract.multi_token import ATTRIBUTE, MultiTokenHeads
from shoestring.decode import Answer, Engine, Request, Sampling, Stop
from shoestring.decode.accelerated import Accelerated, Accelerators
from shoestring.decode.datastore import build_datastore
from shoestring.decode.drafter import Drafter
from shoestring.decode.mixture import LogitMixture
from shoestring.decode.mtp_head import MTPHead
from shoestring.decode.row import Row
from shoestring.decode.scheduler import Scheduler
from shoestring.decode.separate_store import SeparateStore
from shoestring.decode.store import PagedStore
from shoestring.decode.supplied import supplied
from shoestring.errors import UsageError
from shoestring.method import methods
from shoestring.model import ModelConfig, Transformer
from shoestring.model.wrapped import Wrapped
from tests.decode.random_models import CONTEXT, native, noisy, one_by_one, prompts, wrapped

GREEDY = Sampling(temperature=0)
WARM = Sampling(temperature=1.5, top_p=0.9, seed=3, repetition_penalty=1.1, presence_penalty=0.2)
MODELS: dict[str, Callable[[], LanguageModel]] = {
    "native": native,
    "one key head": lambda: native(key_value_heads=1),
    "gpt2": lambda: wrapped("gpt2"),
    "gemma": lambda: wrapped("gemma"),
    "windows": lambda: wrapped("mistral"),
}
TEXTS = prompts(8)
WRITTEN = 14
"""Tokens of an answer."""


@functools.cache
def model_of(name: str) -> LanguageModel:
    return MODELS[name]()


@functools.cache
def expected_of(name: str) -> list[list[int]]:
    """What each text is followed by, alone."""
    return [one_by_one(model_of(name), text, WRITTEN) for text in TEXTS]


def answers(engine: Engine, requests: list[Request]) -> dict[tuple[int, int], Answer]:
    return {(each.number, each.sample): each for each in engine.run(requests)}


def store(model: LanguageModel, kind: str) -> Any:
    return SeparateStore(model, 12 * CONTEXT, 4) if kind == "separate" else PagedStore(model, 60, 4)


# every scheduler and every drafter stands in this table: each scheduler with the drafter that needs nothing, and each drafter with
# the scheduler of old. Schedulers see no model: one is enough for them
SCHEDULERS = [card.name for card in methods("decode", "scheduler")]
DRAFTERS = [card.name for card in methods("decode", "drafter")]
TABLE = [*((scheduler, None) for scheduler in SCHEDULERS), *(("first_come", drafter) for drafter in DRAFTERS)]
TABLE += [(scheduler, "ngram") for scheduler in SCHEDULERS if scheduler != "first_come"]
WHOLE_TABLE = [("native", *each) for each in TABLE]
# two models unlike the native one and each other with every drafter; the other two differ in what the model and its store do alone
WHOLE_TABLE += [(name, "first_come", drafter) for name in ("gpt2", "windows") for drafter in (None, *DRAFTERS)]
WHOLE_TABLE += [
    (name, "first_come", drafter) for name in ("one key head", "gemma") for drafter in (None, "ngram", "staged")
]


OPTIONS: dict[str, dict[str, Any]] = {
    "draft_model": {"confidence": 0.1},
    "staged": {"least": 0.0, "most": 8, "passes": 3},
    "fast_mtp": {"confidence": 0.0},
    "m2r2": {"confidence": 0.0},
    "multi_token": {"confidence": 0.0},
    "layer_skip": {"layers": 1, "confidence": 0.0},
    "longspec": {"confidence": 0.0, "window": 10, "anchors": 2},
}
"""Of drafters, for models that are never as sure as those that were trained."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the file of each drafter lies that needs one, by its name."""
    folder = tmp_path_factory.mktemp("made")
    MTPHead(32, 32, 24).save(folder / "fast_mtp")
    torch.manual_seed(3)
    accelerators = Accelerators(1, 32, 4)
    torch.nn.init.normal_(accelerators.up, std=0.05)
    Accelerated(native(), accelerators).save(folder / "m2r2")
    build_datastore(native(), [(*text, *one_by_one(native(), text, 12)) for text in TEXTS])[0].save(folder / "nest")
    return folder


def drafter_of(name: str | None, model: LanguageModel, made: Path) -> Drafter | None:
    """A drafter, its draft model much like `model`."""
    if name == "multi_token" and not hasattr(model, ATTRIBUTE):
        torch.manual_seed(4)
        setattr(model, ATTRIBUTE, MultiTokenHeads(3, 32, 16))
    supplies = {"target": lambda: model, "draft": lambda: noisy(model), "place": lambda: made / str(name)}
    return supplied("drafter", name, supplies, **OPTIONS.get(name, {})) if name else None


def scheduler_of(name: str, model: LanguageModel) -> Scheduler:
    target = with_experts() if name == "expert_groups" else model
    made: Scheduler = supplied("scheduler", name, {"target": lambda: target})
    return made


@functools.cache
def with_experts() -> LanguageModel:
    """What says which tokens are alike to a scheduler, of the vocabulary of the models here."""
    sizes = {"layers": 1, "width": 16, "heads": 2, "vocabulary": native().about.vocabulary, "channel_mixer": "moe"}
    return Transformer(build(ModelConfig, sizes))


@pytest.mark.parametrize(("name", "scheduler", "drafter"), WHOLE_TABLE)
def test_every_answer_is_the_one_it_has_alone(name: str, scheduler: str, drafter: str | None, made: Path) -> None:
    model, expected = model_of(name), expected_of(name)
    if drafter == "m2r2" and isinstance(model, Wrapped):
        with pytest.raises(UsageError, match="m2r2 needs a native model, or a bridged one"):
            drafter_of(drafter, model, made)
        return
    drafting = drafter_of(drafter, model, made)
    paged = store(model, "paged")
    engine = Engine(model, store=paged, rows=5, tokens=24, scheduler=scheduler_of(scheduler, model), drafter=drafting)
    got = answers(engine, [Request(text, GREEDY, WRITTEN) for text in TEXTS])
    assert [list(got[number, 0].tokens) for number in range(1, len(TEXTS) + 1)] == expected
    paged.check()
    assert paged.free == paged.capacity
    # the files of the other drafters were made for another model; one key head is sure of what its noisy copy never says in so few
    if drafter in ("ngram", "draft_model", "longspec", "staged") and (name, drafter) != ("one key head", "draft_model"):
        assert engine.accepted > 0


@functools.cache
def drawn_alone() -> list[tuple[int, ...]]:
    """What each of six texts is followed by, drawn alone."""
    engines = [Engine(native(), rows=1, room=CONTEXT) for _ in TEXTS[:6]]
    return [
        next(iter(engine.run([Request(text, WARM, 12)]))).tokens for engine, text in zip(engines, TEXTS, strict=False)
    ]


@pytest.mark.parametrize(("scheduler", "drafter"), TABLE)
def test_draws_belong_to_the_request_and_not_to_its_company(scheduler: str, drafter: str | None, made: Path) -> None:
    model, alone = native(), drawn_alone()
    drafting = drafter_of(drafter, model, made)
    planner = scheduler_of(scheduler, model)
    engine = Engine(model, store=PagedStore(model, 40, 4), rows=3, tokens=16, drafter=drafting, scheduler=planner)
    got = answers(engine, [Request(text, WARM, 12) for text in TEXTS[:6]])
    assert [got[number, 0].tokens for number in range(1, 7)] == alone
    assert len(set(alone)) > 3


def mixture_of(name: str, model: LanguageModel, made: Path) -> LogitMixture:
    place = made / f"{name}-{model.about.context}"
    if not place.exists():
        build_datastore(model, [(*text, *one_by_one(model, text, 12)[::-1]) for text in TEXTS])[0].save(place)
    options: dict[str, Any] = {"neighbours": 6, "share": 0.6, **({"clusters": 12} if name == "retomaton" else {})}
    found: LogitMixture = supplied("mixture", name, {"target": lambda: model, "place": lambda: place}, **options)
    return found


def mixed_one_by_one(model: LanguageModel, mixture: LogitMixture, text: tuple[int, ...], count: int) -> list[int]:
    """Greedy decoding without a cache; an answer's walk begins at its first token."""
    row = Row(1, 1, Request(text, GREEDY, count), 0, list(text), 0.0)
    with torch.no_grad():
        while row.left and len(row.tokens) <= model.about.context:
            reading = model.read(Inputs(torch.tensor([row.tokens])))
            hidden, logits = reading.hidden[0, -1:], reading.logits()[0, -1]
            row.tokens.append(int(mixture.mixed(row, logits, hidden[0], mixture.find(hidden)[0]).argmax()))
    return row.tokens[len(text) :]


@pytest.mark.parametrize("drafter", [None, "ngram", "draft_model"])
@pytest.mark.parametrize("name", [card.name for card in methods("decode", "mixture")])
def test_mixed_answers_are_those_that_each_has_alone(
    name: str, drafter: str | None, made: Path, tmp_path: Path
) -> None:
    """Beside others, with drafts, in little room where rows are read again, and with samples that part."""
    model = native()
    mixture = mixture_of(name, model, tmp_path)
    expected = [mixed_one_by_one(model, mixture, text, 12) for text in TEXTS]
    assert expected != [one_by_one(model, text, 12) for text in TEXTS]
    mixture.spent()
    paged = PagedStore(model, 24, 4)
    engine = Engine(model, store=paged, rows=4, tokens=16, mixture=mixture, drafter=drafter_of(drafter, model, made))
    got = answers(engine, [Request(text, GREEDY, 12, samples=1 + at % 2) for at, text in enumerate(TEXTS)])
    assert [list(got[at, 0].tokens) for at in range(1, len(TEXTS) + 1)] == expected
    assert [list(got[at, 1].tokens) for at in range(2, len(TEXTS) + 1, 2)] == expected[1::2]
    paged.check()
    plain = answers(Engine(model, rows=1, room=CONTEXT), [Request(TEXTS[0], GREEDY, 12)])
    assert got[1, 0].spent.charge.flops > plain[1, 0].spent.charge.flops  # who mixes pays for the search


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["paged", "separate"])
def test_stores_hold_the_same(name: str, kind: str) -> None:
    model, expected = model_of(name), expected_of(name)
    engine = Engine(model, store=store(model, kind), rows=4, tokens=16)
    got = answers(engine, [Request(text, GREEDY, WRITTEN) for text in TEXTS])
    assert [list(got[number, 0].tokens) for number in range(1, len(TEXTS) + 1)] == expected
    assert engine.store.free == engine.store.capacity


def test_samples_share_the_prompt_and_are_those_of_their_numbers() -> None:
    model, warm = native(), Sampling(temperature=1.5, seed=1)
    text = prompts(1, seed=5)[0] * 2
    engine = Engine(model, store=PagedStore(model, 40, 4), rows=4)
    several = answers(engine, [Request(text, warm, 10, samples=4)])
    assert len({each.tokens for each in several.values()}) == 4
    assert sum(each.spent.charge.read for each in several.values()) == len(text)
    assert engine.store.free == engine.store.capacity
    # the first is what a request for one gives; and preemption of all but one changes nothing
    single = next(iter(Engine(model, rows=1, room=CONTEXT).run([Request(text, warm, 10)])))
    assert several[1, 0].tokens == single.tokens
    narrow = Engine(model, store=PagedStore(model, 14, 4), rows=4)
    assert {key: each.tokens for key, each in answers(narrow, [Request(text, warm, 10, samples=4)]).items()} == {
        key: each.tokens for key, each in several.items()
    }


def test_what_was_read_before_is_not_read_again() -> None:
    model, text = native(), tuple(range(20))
    engine = Engine(model, store=PagedStore(model, 40, 4), rows=2)
    first, second = (next(iter(engine.run([Request(text, GREEDY, 5)]))) for _ in range(2))
    assert first.tokens == second.tokens
    assert (first.spent.charge.read, first.spent.charge.reused) == (20, 0)
    assert (second.spent.charge.read, second.spent.charge.reused) == (
        4,
        16,
    )  # whole blocks, and the last token is read anew


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_books_close(drafter: str, made: Path) -> None:
    """Places computed are those read, written and wasted, less the tokens of answers that nobody read."""
    model = native()
    drafting = drafter_of(drafter, model, made)
    engine = Engine(model, store=PagedStore(model, 24, 4), rows=4, tokens=16, drafter=drafting)
    end = frozenset(one_by_one(model, TEXTS[0], 8)[-1:])
    got = list(engine.run([Request(text, GREEDY, 16, end, samples=2) for text in TEXTS]))
    charges = [each.spent.charge + -each.spent.drafting for each in got]
    total = sum(charge.read + charge.written + charge.wasted for charge in charges)
    assert engine.computed == total - sum(each.spent.unread for each in got)
    assert {each.spent.unread for each in got} == {0, 1}
    assert sum(charge.wasted for charge in charges) > 0
    assert sum(charge.written for charge in charges) == sum(len(each.tokens) for each in got)


def test_a_pass_costs_what_its_rows_cost_but_for_the_weights() -> None:
    model = native()
    engine = Engine(model, store=PagedStore(model, 40, 4), rows=2)
    got = answers(engine, [Request((1, 2, 3), GREEDY, 2), Request((4, 5, 6, 7, 8), GREEDY, 2)])
    alone = [model.cost(Shape(1, size, outputs=1)).flops + model.cost(Shape(1, 1, size)).flops for size in (3, 5)]
    assert sum(each.spent.charge.flops for each in got.values()) == sum(alone)
    weights = model.cost(Shape(1, 1)).moved
    token = model.cost(Shape(1, 1, 1)).moved - weights
    assert sum(each.spent.charge.moved for each in got.values()) == 2 * weights + (3 + 5) * token


def test_seconds_add_up_to_the_clock() -> None:
    import time

    model = native()
    engine = Engine(model, store=PagedStore(model, 40, 4), rows=2)
    began = time.monotonic()
    got = list(engine.run([Request(text, GREEDY, 5) for text in TEXTS[:4]]))
    whole = time.monotonic() - began
    for each in got:
        assert 0 < each.spent.total <= whole + 1e-3
        assert each.spent.first is not None
        assert each.spent.first <= each.spent.total + 1e-3
        assert len(each.spent.between) == 4
    work = sum(each.spent.seconds[cause] for each in got for cause in ("prefill", "decode"))
    assert 0 < work <= whole


@pytest.mark.parametrize(
    ("request_", "stop", "count"),
    [
        (Request((5,), GREEDY, 20), Stop.LENGTH, 20),
        (Request((5,) * (CONTEXT - 2), GREEDY, 20), Stop.CONTEXT, 3),
        (Request((5,) * CONTEXT, GREEDY, 20), Stop.CONTEXT, 1),
        (Request((5,), GREEDY, 20, seconds=0.0), Stop.DEADLINE, 0),
        (Request((5,), GREEDY, 20, flops=1), Stop.FLOPS, 1),
    ],
)
def test_answers_end_for_a_reason(request_: Request, stop: Stop, count: int) -> None:
    (got,) = Engine(native(), rows=1, room=2 * CONTEXT).run([request_])
    assert (got.stop, len(got.tokens)) == (stop, count)


def test_it_ends_at_an_end_token_which_is_no_part_of_it() -> None:
    model = native()
    text = one_by_one(model, (5,), 20)
    (got,) = Engine(model, rows=1).run([Request((5,), GREEDY, 20, frozenset({text[6], 999}))])
    assert list(got.tokens) == text[: text.index(text[6])]
    assert got.stop is Stop.END


def test_what_can_have_no_room_is_refused_and_what_outgrows_it_ends() -> None:
    model = native()
    engine = Engine(model, store=PagedStore(model, 3, 4), rows=2)
    with pytest.raises(UsageError, match="65 tokens, and the model's context is 64"):
        engine.submit(Request((1,) * 65))
    with pytest.raises(UsageError, match="13 tokens, and this engine has room for 12"):
        engine.submit(Request((1,) * 13))
    with pytest.raises(ValueError, match="the prompt is empty"):
        Request(())
    (got,) = engine.run([Request((1,) * 10, GREEDY, 20)])
    assert (got.stop, list(got.tokens)) == (Stop.ROOM, one_by_one(model, (1,) * 10, 3))
    assert engine.store.free == engine.store.capacity


def test_log_probabilities_are_the_models_own() -> None:
    model = native()
    request = Request((1, 2, 3), Sampling(temperature=0.5, top_k=2, seed=4), 3, log_probabilities=2)
    (got,) = Engine(model, rows=1).run([request])
    assert len(got.log_probabilities) == 3
    text: tuple[int, ...] = (1, 2, 3)
    for token, told in zip(got.tokens, got.log_probabilities, strict=True):
        wanted = model(torch.tensor([text]))[0, -1].double().log_softmax(0)
        assert told.token == token
        assert told.value == pytest.approx(float(wanted[token]), abs=1e-5)
        assert [each for each, _ in told.top] == wanted.topk(2).indices.tolist()
        text = (*text, token)


def test_a_higher_priority_goes_first() -> None:
    model = native()
    engine = Engine(model, rows=1, room=CONTEXT)
    requests = [Request((1, 2), GREEDY, 3), Request((3, 4), GREEDY, 3), Request((5, 6), GREEDY, 3, priority=1)]
    assert [each.number for each in engine.run(requests)] == [3, 1, 2]


@pytest.mark.parametrize(
    ("drafter", "events"),
    [("ngram", 1000), ("draft_model", 250), pytest.param("ngram", 10_000, marks=pytest.mark.slow)],
)
def test_any_order_of_events_loses_no_block_and_changes_no_text(drafter: str, events: int, made: Path) -> None:
    """Random arrivals, cancels and forks in little room, with drafts: the books are checked after each."""
    chance, model = random.Random(11), native()
    texts = prompts(20, seed=3)
    alone = {text: one_by_one(model, text, 12) for text in texts}
    paged = PagedStore(model, 13, 4)
    engine = Engine(model, store=paged, rows=4, tokens=16, drafter=drafter_of(drafter, model, made))
    asked: dict[int, tuple[int, ...]] = {}
    written: dict[tuple[int, int], list[int]] = {}
    seen = Counter[str]()
    for _ in range(events):
        what = chance.choice(("submit", "step", "step", "step", "cancel", "fork"))
        if what == "submit" and len(engine.queue.rows) < 8:
            text = chance.choice(texts)
            asked[engine.submit(Request(text, GREEDY, chance.randrange(1, 13)))] = text
        elif what == "cancel" and chance.random() < 0.3 and engine.queue.rows:
            engine.cancel(chance.choice(engine.queue.rows).ticket)
            seen["cancel"] += 1
        elif what == "fork" and chance.random() < 0.3:
            able = [
                row
                for row in engine.queue.rows
                if row.running and sum(o.ticket == row.ticket for o in engine.queue.rows) == 1
            ]
            if able:
                engine.fork(chance.choice(able).ticket, chance.randrange(1, 3))
                seen["fork"] += 1
        before = {row.number for row in engine.queue.rows if row.running}
        for event in engine.step():
            got = written.setdefault((event.number, event.sample), [])
            got += [each.token for each in event.written]
            assert got == alone[asked[event.number]][: len(got)]
            seen["end"] += event.stop is not None
        seen["preempted"] += sum(not row.running for row in engine.queue.rows if row.number in before)
        paged.check()
    for row in list(engine.queue.rows):
        engine.cancel(row.ticket)
    engine.step()
    assert paged.free == paged.capacity
    assert not engine.busy
    assert min(seen[what] for what in ("cancel", "fork", "end", "preempted")) > (5 if drafter == "ngram" else 0), seen


def test_a_long_prompt_in_bfloat16_is_read_as_the_model_reads_it() -> None:
    """It is attended to by torch where the processor multiplies bfloat16, and by the native kernel elsewhere."""
    torch.manual_seed(2)
    made = Transformer(ModelConfig(vocabulary=30, layers=2, width=32, heads=4, key_value_heads=2, context=160))
    model = made.to(torch.bfloat16).eval()
    prompt = tuple(torch.randint(30, (150,)).tolist())
    request = Request(prompt, Sampling(temperature=0), 1, log_probabilities=3)
    (answer,) = Engine(model, rows=1).run([request])
    with torch.no_grad():
        expected = model.read(Inputs(torch.tensor([prompt]))).logits()[0, -1].float().log_softmax(-1)
    (told,) = answer.log_probabilities
    assert told.value == pytest.approx(float(expected[answer.tokens[0]]), abs=0.05)
