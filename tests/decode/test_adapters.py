"""Rows of one pass with adapters each: every answer is that of the model with its adapter alone, and pays for it."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from shoestring.config import Choice
from shoestring.contract.model import LanguageModule
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.drafters.ngram import NGram
from shoestring.decode.separate_store import SeparateStore
from shoestring.decode.store import PagedStore
from shoestring.errors import UsageError
from shoestring.optim.partition import members
from shoestring.tune.several import Several, decision_of
from tests.decode.random_models import CONTEXT, native, one_by_one, prompts, wrapped
from tests.tune.making import evidence

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"rank": 3}),
    ("dora", {"rank": 2}),
    ("road", {"group": 8}),
    ("lora", {"rank": 1, "targets": ("*.0.*",)}),
    ("rslora", {"rank": 3}),
    ("adalora", {"rank": 2, "first_rank": 3}),
    ("road", {"group": 16, "each": 2}),
    ("compacter", {"n": 4, "bottleneck": 8}),
]
TEXTS = prompts(len(KINDS) + 1)
GREEDY, WRITTEN = Sampling(temperature=0), 6
MODELS: dict[str, Callable[[], LanguageModule]] = {"native": native, "gpt2": lambda: wrapped("gpt2")}


class Made:
    """A model with eight adapters, and what each text is followed by with its own, alone."""

    def __init__(self, name: str) -> None:
        made = MODELS[name]()
        self.model, self.several = made, Several(made)
        self.alone = list[list[int]]()
        self.chances = list[float]()
        for place, (kind, options) in enumerate(KINDS):
            single = copy.deepcopy(made)
            edit = Choice.of("tune", kind, kind="edit", **options).build()
            decision = edit.decide(single, evidence(single))
            single = edit.apply(single, decision)
            torch.manual_seed(place)
            with torch.no_grad():
                for member in members(single):
                    member.parameter.add_(torch.randn_like(member.parameter) * 0.3)
            self.several.add(f"number {place}", edit, decision_of(single, edit, decision))
            self._expect(single.requires_grad_(False), TEXTS[place])
        self._expect(made, TEXTS[-1])

    def _expect(self, model: LanguageModule, text: tuple[int, ...]) -> None:
        self.alone.append(one_by_one(model, text, WRITTEN))
        with torch.no_grad():
            logits = model(torch.tensor([[*text, *self.alone[-1][:-1]]]))[0, -WRITTEN:].log_softmax(-1)
        self.chances += [float(line[token]) for line, token in zip(logits, self.alone[-1], strict=True)]

    def requests(self) -> list[Request]:
        names = [*(f"number {place}" for place in range(len(KINDS))), None]
        return [
            Request(text, GREEDY, WRITTEN, log_probabilities=0, adapter=name)
            for text, name in zip(TEXTS, names, strict=True)
        ]


@functools.cache
def made(name: str) -> Made:
    return Made(name)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["paged", "separate", "drafts"])
def test_eight_adapters_in_one_batch_equal_eight_single_runs(name: str, kind: str) -> None:
    one = made(name)
    store: Any = SeparateStore(one.model, 12 * CONTEXT, 9) if kind == "separate" else PagedStore(one.model, 60, 4)
    drafter = NGram() if kind == "drafts" else None
    engine = Engine(one.model, store=store, rows=9, tokens=200, drafter=drafter, adapters=one.several)
    got = {answer.number: answer for answer in engine.run(one.requests())}
    in_order = [got[number] for number in range(1, len(TEXTS) + 1)]
    assert [list(answer.tokens) for answer in in_order] == one.alone
    assert len({tuple(tokens) for tokens in one.alone}) > len(KINDS) // 2  # they do differ
    chances = [each.value for answer in in_order for each in answer.log_probabilities]
    torch.testing.assert_close(torch.tensor(chances), torch.tensor(one.chances), atol=1e-4, rtol=1e-4)
    if kind == "paged":
        assert engine.passes == WRITTEN  # all of them share every pass
    else:
        assert store.free == store.capacity


@pytest.mark.parametrize("separate", [False, True])
def test_an_adapter_is_charged_to_the_rows_that_have_it(separate: bool) -> None:
    one = made("native")
    text = TEXTS[0]

    def charges(*names: str | None) -> list[Any]:
        store: Any = SeparateStore(one.model, 12 * CONTEXT, 9) if separate else PagedStore(one.model, 60, 4)
        engine = Engine(one.model, store=store, rows=4, adapters=one.several)
        got = {answer.number: answer for answer in engine.run(Request(text, GREEDY, 3, adapter=name) for name in names)}
        return [got[number].spent.charge for number in sorted(got)]

    plain, lora, again, road = charges(None, "number 0", "number 0", "number 2")
    places = len(text) + 2
    assert lora.flops - plain.flops == one.several.flops("number 0", places) > 0
    assert road.flops == plain.flops  # it multiplies element by element
    bytes_of = {name: charges(name)[0].moved - charges(None)[0].moved for name in ("number 0", "number 2")}
    assert bytes_of["number 0"] > bytes_of["number 2"] > 0
    if not separate:  # what two rows share they divide
        assert lora.moved + again.moved - 2 * plain.moved == bytes_of["number 0"]


def test_beginnings_are_shared_within_an_adapter_and_never_across() -> None:
    one = made("native")
    text = tuple(range(20))
    store = PagedStore(one.model, 60, 4)
    engine = Engine(one.model, store=store, rows=1, adapters=one.several)
    reused = [
        next(iter(engine.run([Request(text, GREEDY, 2, adapter=name)]))).spent.charge.reused
        for name in (None, "number 0", "number 1", "number 0", None)
    ]
    assert reused == [0, 0, 0, 16, 16]
    store.check()


def test_without_adapters_passes_are_as_they_were() -> None:
    one = made("native")
    engine = Engine(one.model, rows=2, adapters=one.several)
    next(iter(engine.run([Request(TEXTS[0], GREEDY, 2, adapter="number 0")])))
    assert not any(module._forward_hooks for module in one.model.modules())
    with pytest.raises(UsageError, match="no adapter is named 'number 9': did you mean"):
        engine.submit(Request(TEXTS[0], adapter="number 9"))
    with pytest.raises(UsageError, match="no adapter is named 'poet'"):
        Engine(one.model).submit(Request(TEXTS[0], adapter="poet"))
