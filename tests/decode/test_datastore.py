"""Datastores: the search and the mixtures are those of their definitions; walks save searches; spans of a corpus are drafted."""

from pathlib import Path

import pytest
import torch

from shoestring.contract.batch import Inputs
from shoestring.contract.cost import Shape
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode import datastore as module
from shoestring.decode.datastore import Datastore, build_datastore
from shoestring.decode.drafters.nest import NEST
from shoestring.decode.made_files import write_made
from shoestring.decode.mixtures.knn_lm import KNNLM
from shoestring.decode.mixtures.retomaton import RetoMaton, k_means
from shoestring.decode.store import PagedStore
from shoestring.errors import UsageError
from shoestring.model import Transformer
from tests.decode.random_models import VOCABULARY, native, one_by_one, prompts

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return native()


@pytest.fixture(scope="module")
def texts(model: Transformer) -> list[tuple[int, ...]]:
    """Texts of the model itself."""
    return [(*text, *one_by_one(model, text, 20)) for text in prompts(8)]


@pytest.fixture(scope="module")
def store(model: Transformer, texts: list[tuple[int, ...]]) -> Datastore:
    made, charge = build_datastore(model, texts)
    assert charge.read == len(made) == sum(len(text) - 1 for text in texts)
    return made


@pytest.fixture
def place(store: Datastore, tmp_path: Path) -> Path:
    store.save(tmp_path / "store")
    return tmp_path / "store"


def test_entries_are_what_the_model_thought_and_what_came_next(
    model: Transformer, texts: list[tuple[int, ...]], store: Datastore
) -> None:
    first = len(texts[0]) - 1
    whole = model.read(Inputs(torch.tensor([texts[1]]))).hidden[0]
    assert torch.allclose(store.keys[first : first + len(texts[1]) - 1], whole[:-1], atol=1e-5)
    assert store.tokens[first : first + len(texts[1]) - 1].tolist() == list(texts[1][1:])
    assert store.after(first, 5) == list(texts[1][2:7])
    assert store.after(first - 2, 5) == [texts[0][-1]]  # the text ends
    assert store.next(torch.tensor([0, first - 1, first, len(store) - 1])).tolist() == [1, first + 1]


def test_the_search_finds_the_nearest_of_all(store: Datastore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 50)
    queries = torch.randn(7, store.keys.shape[1], generator=torch.Generator().manual_seed(0))
    distances, places = store.search(queries, 9)
    all_ = (queries[:, None] - store.keys[None]).square().sum(2)
    expected = all_.topk(9, largest=False)
    assert torch.allclose(distances, expected.values, rtol=1e-3)
    assert torch.allclose(all_.gather(1, places), distances, rtol=1e-3)  # of equal ones, any
    assert all(len(set(each)) == 9 for each in places.tolist())
    assert torch.allclose(store.distances(queries[0], places[0]), distances[0], rtol=1e-3)
    assert store.search(queries, 10**6)[0].shape == (7, len(store))


def plain_mixture(
    model: Transformer, store: Datastore, text: tuple[int, ...], share: float, count: int
) -> torch.Tensor:
    reading = model.read(Inputs(torch.tensor([text])))
    query = reading.hidden[0, -1]
    near = dict[int, float]()
    for entry in sorted(range(len(store)), key=lambda at: float((store.keys[at] - query).square().sum()))[:count]:
        token, distance = int(store.tokens[entry]), float((store.keys[entry] - query).square().mean())
        near[token] = near.get(token, 0.0) + float(torch.tensor(-distance / 0.1).exp())
    own = reading.logits()[0, -1].softmax(0)
    return torch.tensor(
        [
            (1 - share) * float(own[token]) + share * near.get(token, 0.0) / sum(near.values())
            for token in range(VOCABULARY)
        ]
    )


def test_a_mixture_is_its_definition_and_every_engine_reads_it(
    model: Transformer, store: Datastore, place: Path
) -> None:
    mixed = KNNLM(model, place, share=0.4, neighbours=5)
    for text in prompts(4, seed=9):
        got = mixed.read(Inputs(torch.tensor([text]))).logits()[0, -1]
        assert torch.allclose(got.exp(), plain_mixture(model, store, text, 0.4, 5), atol=1e-4)
    engine = Engine(mixed, store=PagedStore(mixed, 60, 4), rows=3)
    asked = prompts(4, seed=9)
    got_texts = {each.number: list(each.tokens) for each in engine.run([Request(text, GREEDY, 8) for text in asked])}
    assert got_texts == {at: one_by_one(mixed, text, 8) for at, text in enumerate(asked, start=1)}
    shape = Shape(2, 3, 4, outputs=1)
    assert mixed.cost(shape).flops == model.cost(shape).flops + 2 * 2 * store.keys.numel()
    plain = KNNLM(model, place, share=0.0).read(Inputs(torch.tensor([asked[0]]))).logits()
    assert torch.allclose(plain, model.read(Inputs(torch.tensor([asked[0]]))).logits().log_softmax(-1), atol=1e-5)


def test_a_walk_is_its_definition(model: Transformer, store: Datastore, place: Path) -> None:
    """Against sets and loops, on a text that leaves the datastore and comes back."""
    automaton = RetoMaton(model, place, clusters=12, neighbours=6, least=2)
    text = (*prompts(8)[2], *one_by_one(model, prompts(8)[2], 8), 7, 7, *one_by_one(model, (1, 2), 6))
    hidden = model.read(Inputs(torch.tensor([text[:-1]]))).hidden[0]
    walk = automaton.walk(hidden, torch.tensor(text[1:]), VOCABULARY)
    labels, pointers, searched = automaton.labels.tolist(), set[int](), []
    for at, token in enumerate(text[1:]):
        distance = (store.keys - hidden[at]).square().mean(1)
        searched.append(len(pointers) < 2)
        if searched[-1]:
            reached = distance.topk(6, largest=False).indices.tolist()
        else:
            states = {labels[pointer] for pointer in pointers}
            reached = [entry for entry in range(len(store)) if labels[entry] in states]
        weights = torch.zeros(VOCABULARY)
        for entry in reached:
            weights[int(store.tokens[entry])] += (-distance[entry] / 0.1).exp()
        assert torch.allclose(walk.probabilities[at], weights / weights.sum(), atol=1e-4)
        pointers = {
            entry + 1
            for entry in reached
            if int(store.tokens[entry]) == token
            and entry + 1 < len(store)
            and store.texts[entry] == store.texts[entry + 1]
        }
    assert walk.searched == searched
    assert 0 < walk.saved < 1


def test_a_walk_along_a_known_text_searches_little_and_says_what_comes(
    model: Transformer, texts: list[tuple[int, ...]], store: Datastore, place: Path
) -> None:
    automaton = RetoMaton(model, place, clusters=40)
    reading = model.read(Inputs(torch.tensor([texts[3][:-1]])))
    goals = torch.tensor(texts[3][1:])
    walk = automaton.walk(reading.hidden[0], goals, VOCABULARY)
    assert walk.searched[0]
    assert walk.saved > 0.9
    assert walk.looked_at < 0.5 * len(store) * len(goals)
    own = reading.logits()[0].log_softmax(-1)
    losses = [-float(each.gather(1, goals[:, None]).mean()) for each in (own, walk.mixed(own, 0.5))]
    assert losses[1] < 0.6 * losses[0]


def test_clusters_part_what_lies_apart() -> None:
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    points = centres.repeat_interleave(20, 0) + torch.randn(60, 2, generator=torch.Generator().manual_seed(1))

    def spread(labels: torch.Tensor) -> float:
        return sum(float(points[labels == at].var(0, correction=0).sum()) for at in labels.unique().tolist())

    best = min((k_means(points, 3, seed) for seed in range(8)), key=spread)
    assert [len(best[part : part + 20].unique()) for part in (0, 20, 40)] == [1, 1, 1]
    assert len(best.unique()) == 3


def test_spans_of_a_corpus_are_drafted(model: Transformer, texts: list[tuple[int, ...]], place: Path) -> None:
    drafter = NEST(model, place, most=6)
    engine = Engine(model, rows=2, drafter=drafter)
    asked = prompts(8)[:4]
    got = {each.number: list(each.tokens) for each in engine.run([Request(text, GREEDY, 18) for text in asked])}
    assert got == {at: one_by_one(model, text, 18) for at, text in enumerate(asked, start=1)}
    assert engine.accepted > 0.8 * engine.drafted > 40  # the corpus holds these very answers
    assert drafter.sources == {}  # forgotten with their rows
    assert (
        sum(each.spent.drafting.flops for each in Engine(model, drafter=drafter).run([Request(asked[0], GREEDY, 5)]))
        > 0
    )


def test_what_does_not_suit_is_refused_in_one_line(
    model: Transformer, store: Datastore, place: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="a datastore needs a text of two tokens or more"):
        build_datastore(model, [[1]])
    Datastore(store.keys[:, :8].contiguous(), store.tokens, store.texts).save(tmp_path / "narrow")
    with pytest.raises(UsageError, match=r"narrow: 'keys' is \[\d+, 8\], and \[-1, 32\] is needed"):
        KNNLM(model, tmp_path / "narrow")
    Datastore(store.keys, store.tokens + 30, store.texts).save(tmp_path / "other")
    with pytest.raises(UsageError, match="other: it holds tokens that the model does not know"):
        NEST(model, tmp_path / "other")
    write_made(tmp_path / "short", "datastore", {"keys": store.keys, "tokens": store.tokens[1:], "texts": store.texts})
    with pytest.raises(UsageError, match="as many keys as tokens and texts"):
        Datastore.read(tmp_path / "short", model)
    with pytest.raises(UsageError, match="2 places and 3 tokens"):
        RetoMaton(model, place).walk(store.keys[:2], store.tokens[:3], VOCABULARY)
