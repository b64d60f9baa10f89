"""Acceptances: exact ones change no text, lossy ones say how much they changed; each as its paper has it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from shoestring.budget.charge import Charge
from shoestring.contract.batch import Inputs
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.acceptance import Acceptance, Question
from shoestring.decode.acceptances.autojudge import AutoJudge, Mismatch, MismatchJudge, features_of, fit, mine
from shoestring.decode.acceptances.bild import Bild
from shoestring.decode.acceptances.exact import Exact
from shoestring.decode.acceptances.nest import NestAcceptance
from shoestring.decode.drafters.draft_model import DraftModel
from shoestring.decode.drafters.staged import Staged
from shoestring.decode.made_files import write_made
from shoestring.decode.preparation import Given
from shoestring.decode.preparations.autojudge import autojudge
from shoestring.errors import UsageError
from shoestring.method import methods
from tests.decode.random_models import native, noisy, one_by_one, prompts

GREEDY = Sampling(temperature=0)
WIDTH = 32


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge that looks at one feature."""
    place = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    weight = torch.zeros(2 * WIDTH, dtype=torch.float64)
    weight[0] = 5.0
    MismatchJudge(weight, torch.tensor(0.0, dtype=torch.float64), 0.5, 1.0, 1.0).save(place)
    return place


ACCEPTANCES: dict[str, Callable[[Path], Acceptance]] = {
    "exact": lambda _: Exact(),
    "bild": lambda _: Bild(rollback=3.0),
    "autojudge": AutoJudge,
    "nest": lambda _: NestAcceptance(relaxed=0.3),
}


def test_every_acceptance_stands_in_the_table() -> None:
    assert {card.name for card in methods("decode", "acceptance")} == set(ACCEPTANCES)


def rule(name: str, question: Question) -> bool:
    """What each keeps, from its definition."""
    if name == "exact" or question.drafted == question.chosen:
        return question.drafted == question.chosen
    if name == "bild":
        return -float(question.logits.softmax(0)[question.drafted].log()) <= 3.0
    if name == "nest":
        chances = question.logits.softmax(0)
        return float(chances[question.drafted]) >= 0.3 * float(chances.max())
    return float(question.hidden[0]) < 0  # sigmoid(5 h) < 0.5


@pytest.mark.parametrize("trees", [False, True])
@pytest.mark.parametrize("name", ACCEPTANCES)
def test_what_stays_is_what_the_rule_keeps(name: str, trees: bool, judge: Path) -> None:
    model = native()
    draft = noisy(model, 0.15)
    drafter = Staged(draft, model, most=8, passes=3, least=0) if trees else DraftModel(draft, model, confidence=0)
    acceptance, asked = ACCEPTANCES[name](judge), list[tuple[Question, bool]]()

    class Watched:
        exact = acceptance.exact

        def accepts(self, question: Question) -> bool:
            asked.append((question, acceptance.accepts(question)))
            return asked[-1][1]

    engine = Engine(model, rows=3, drafter=drafter, acceptance=Watched())
    texts = prompts(6)
    got = {each.number: each for each in engine.run([Request(text, GREEDY, 16) for text in texts])}
    assert all(stays == rule(name, question) for question, stays in asked)
    changed = [got[number].spent.changed for number in range(1, 7)]
    assert sum(changed) == sum(stays and q.drafted != q.chosen for q, stays in asked)
    # a text is that of decoding alone where no mismatch stayed, and only there
    same = [list(got[number].tokens) == one_by_one(model, text, 16) for number, text in enumerate(texts, start=1)]
    assert same == [count == 0 for count in changed]
    assert all(same) == acceptance.exact


def test_the_hidden_states_of_a_question_are_those_before_and_after_the_token() -> None:
    model, seen = native(), list[Question]()

    class Watched:
        exact = True

        def accepts(self, question: Question) -> bool:
            seen.append(question)
            return question.drafted == question.chosen

    drafter = Staged(noisy(model), model, most=8, passes=3, least=0)
    engine = Engine(model, rows=1, drafter=drafter, acceptance=Watched())
    text: tuple[int, ...] = (1, 2, 3)
    engine.submit(Request(text, GREEDY, 12))
    while engine.busy:
        seen.clear()
        written = [each.token for event in engine.step() for each in event.written]
        before, places = text, iter(written)
        for question in seen:
            alone = model.read(Inputs(torch.tensor([[*before, question.drafted]]))).hidden[0]
            assert torch.allclose(question.hidden, alone[-2], atol=1e-4)
            assert torch.allclose(question.after, alone[-1], atol=1e-4)
            if question.drafted == question.chosen:
                before = (*before, next(places))
        text = (*text, *written)


def writer(rule_: Callable[[Sequence[int]], int], count: int, prompt: int) -> Callable[..., tuple[list[int], Charge]]:
    def write(tokens: tuple[int, ...]) -> tuple[list[int], Charge]:
        text = list(tokens)
        while len(text) < prompt + count:
            text.append(rule_(text))
        return text[len(tokens) :], Charge(flops=1)

    return write


def test_mining_is_the_semi_greedy_search() -> None:
    """Against a plain version of it, on models whose choices and answers are at random."""
    target, draft, count = native(seed=2), native(seed=5), 8
    prompt = (3, 1, 4)

    def choice(model: object, text: Sequence[int]) -> int:
        return int(model.read(Inputs(torch.tensor([list(text)]))).logits()[0, -1].argmax())  # type: ignore[attr-defined]

    def check(answer: Sequence[int]) -> bool:
        return sum(answer) % 3 != (answer[-1] + 1) % 3 or len(answer) < count

    write = writer(lambda text: choice(target, text), count, len(prompt))
    found, charge = mine(write, target, draft, prompt, check)
    # the plain version: one token after the other
    answer = one_by_one(target, prompt, count)
    assert check(answer)
    expected = []
    for place in range(count):
        begun = answer[:place]
        token = choice(draft, (*prompt, *begun))
        if token == answer[place]:
            continue
        other = [*begun, token, *one_by_one(target, (*prompt, *begun, token), count - place - 1)]
        hidden = target.read(Inputs(torch.tensor([[*prompt, *begun, token]]))).hidden[0]
        expected.append((hidden[-2:].flatten().double(), not check(other)))
        if check(other):
            answer = other
    assert len(found) == len(expected) > 3
    assert {each.important for each in found} == {True, False}
    for mismatch, (features, important) in zip(found, expected, strict=True):
        assert torch.allclose(mismatch.features, features, atol=1e-4)
        assert mismatch.important == important
    assert charge.calls >= 2 * len(found)
    assert charge.flops > 0


def test_a_judge_is_prepared_of_questions_and_serves_an_engine(tmp_path: Path) -> None:
    target, draft = native(seed=2), native(seed=5)

    def check(answer: Sequence[int]) -> bool:
        assert len(answer) <= 5
        return sum(answer) % 3 != 0

    given = [Given((*text, 0), len(text), check) for text in prompts(10)]
    made = autojudge(target, given, draft, tokens=5)
    assert "mismatches matter" in made.found[0]
    assert made.charge.flops > 0
    made.save(tmp_path / "judge")
    engine = Engine(target, drafter=DraftModel(draft, target, confidence=0), acceptance=AutoJudge(tmp_path / "judge"))
    assert all(len(each.tokens) == 6 for each in engine.run([Request(text.tokens[:-1], GREEDY, 6) for text in given]))
    with pytest.raises(UsageError, match="learns from answers that can be checked"):
        autojudge(target, [Given((1, 2, 3))], draft)


def test_a_prompt_that_is_answered_wrong_teaches_nothing() -> None:
    model = native()
    write = writer(lambda text: text[0], 4, 2)
    assert mine(write, model, native(seed=5), (1, 2), lambda answer: False)[0] == []


def mismatches(count: int, noise: float) -> list[Mismatch]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        x = torch.randn(6, generator=generator, dtype=torch.float64) * 3 + 1
        score = 2 * x[0] - x[3] + noise * torch.randn((), generator=generator)
        made.append(Mismatch(x, bool(score > 1)))
    return made


def test_a_judge_finds_the_share_of_important_mismatches_that_is_asked_for(tmp_path: Path) -> None:
    given = mismatches(400, noise=2.0)
    loose, strict = (fit(given, recall=recall) for recall in (0.5, 0.95))
    assert 0.5 <= loose.recall < 0.6
    assert 0.95 <= strict.recall <= 1
    assert 0.7 < strict.kept < loose.kept
    strict.save(tmp_path / "judge.safetensors")
    read = AutoJudge(tmp_path / "judge.safetensors")
    # on what it was fitted to and not
    right = [
        read.accepts(Question(0, 1, torch.zeros(2), each.features[:3], each.features[3:])) != each.important
        for each in given
    ]
    assert sum(right) / len(right) > 0.8
    never = AutoJudge(tmp_path / "judge.safetensors", threshold=0)
    assert not any(
        never.accepts(Question(0, 1, torch.zeros(2), each.features[:3], each.features[3:])) for each in given
    )
    assert torch.equal(features_of(torch.ones(2), torch.zeros(1)), torch.tensor([1.0, 1, 0]).double())


def test_what_does_not_suit_is_refused_in_one_line(tmp_path: Path, judge: Path) -> None:
    with pytest.raises(UsageError, match="2 mismatches are too few"):
        fit(mismatches(2, 0))
    with pytest.raises(UsageError, match="does not exist: give the file that was made for 'autojudge'"):
        AutoJudge(tmp_path / "none")
    (tmp_path / "torn").write_bytes(judge.read_bytes()[:40])
    with pytest.raises(UsageError, match="torn cannot be read"):
        AutoJudge(tmp_path / "torn")
    write_made(tmp_path / "other", "fast_mtp", {"weight": torch.zeros(3)})
    with pytest.raises(UsageError, match="was not made for 'autojudge'"):
        AutoJudge(tmp_path / "other")
    write_made(tmp_path / "half", "autojudge", {"weight": torch.zeros(3)})
    with pytest.raises(UsageError, match="half has no tensor 'bias'"):
        AutoJudge(tmp_path / "half")
    with pytest.raises(UsageError, match="trained for hidden states of 32 features, and this model has 3"):
        AutoJudge(judge).accepts(Question(0, 1, torch.zeros(2), torch.zeros(3), torch.zeros(3)))
    with pytest.raises(ValueError, match="bild: rollback"):
        Bild(rollback=-1)
