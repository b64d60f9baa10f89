"""Mixtures of experts' probabilities: the definition, no look at what comes later, and every reading on the bill."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from shoestring.contract.batch import IGNORED, Batch, Inputs
from shoestring.contract.cost import Cost, Shape
from shoestring.contract.model import MatrixHead
from shoestring.decode import AnswerSpent, Sampling, generate
from shoestring.decode.ensemble import Ensemble, mixture, token_log_probabilities
from shoestring.decode.expert_weights.base import Weigher, keep_top
from shoestring.decode.expert_weights.cluster_distance import ClusterDistance
from shoestring.decode.expert_weights.fixed import FixedExpertWeights
from shoestring.decode.expert_weights.running_likelihood import RunningLikelihood
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.train.evaluate import Evaluator

VOCABULARY, CONTEXT, EXPERTS = 23, 24, 3


def expert(seed: int, width: int = 16, context: int = CONTEXT, vocabulary: int = VOCABULARY) -> Transformer:
    torch.manual_seed(seed)
    made = Transformer(ModelConfig(layers=1, width=width, heads=2, vocabulary=vocabulary, context=context))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    return made.eval()


@pytest.fixture(scope="module")
def experts() -> list[Transformer]:
    return [expert(seed, width) for seed, width in enumerate((16, 32, 16))]


def distances(tokens: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Of made-up clusters: how far the mean token of a prefix is from 5, 12 and 19."""
    means = np.stack([tokens[:, :end].mean(axis=1) for end in ends], axis=1)
    return ((means[..., None] - np.array([5.0, 12.0, 19.0])) ** 2 / 50).astype(np.float32)


def near(top_k: int = 0, every: int = 4) -> ClusterDistance:
    return ClusterDistance(distances, temperature=0.5, top_k=top_k, every=every)


WEIGHERS = {
    "cluster, all": near(),
    "cluster, 1": near(1),
    "cluster, 2, every token": near(2, 1),
    "likelihood": RunningLikelihood(),
    "likelihood, 2, every 5": RunningLikelihood([0.5, 0.2, 0.3], top_k=2, every=5),
    "fixed": FixedExpertWeights([1, 0, 3]),
}


def texts(rows: int = 4, length: int = CONTEXT) -> Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def slowly(experts: list[Transformer], weigher: Weigher, tokens: Tensor) -> Tensor:
    """log sum_j w_j p_j [B, T, V], straight from the definition, one place at a time."""
    each = torch.stack([F.log_softmax(model(tokens), dim=-1) for model in experts], dim=-1).double()
    found = torch.empty(*tokens.shape, VOCABULARY, dtype=torch.float64)
    for row in range(len(tokens)):
        for place in range(tokens.shape[1]):
            update = place // weigher.every * weigher.every
            past = tokens[row : row + 1, : update + 1]
            told = torch.zeros(1, update + 1, len(experts))
            for at in range(1, update + 1):
                told[0, at] = each[row, at - 1, tokens[row, at]].float()
            weights = weigher(past, told)[0, -1]
            found[row, place] = (each[row, place].exp() * weights).sum(dim=-1).log()
    return found


@pytest.mark.parametrize("weigher", WEIGHERS.values(), ids=list(WEIGHERS))
def test_an_ensemble_is_the_mixture_of_the_definition(experts: list[Transformer], weigher: Weigher) -> None:
    tokens = texts()
    expected = slowly(experts, weigher, tokens)
    together = Ensemble(experts, weigher)
    found = together.read(Inputs(tokens)).hidden
    assert torch.allclose(found.double(), expected, atol=1e-4)
    assert torch.allclose(found.exp().sum(dim=-1), torch.ones(tokens.shape), atol=1e-4)
    targets = tokens.roll(-1, dims=1)
    targets[:, -1] = IGNORED
    chosen, _ = together.log_probabilities(Inputs(tokens), targets)
    assert torch.allclose(chosen[:, :-1], found.gather(2, targets.clamp_min(0)[..., None])[:, :-1, 0], atol=1e-4)
    assert (chosen[:, -1] == 0).all()


@pytest.mark.parametrize("weigher", WEIGHERS.values(), ids=list(WEIGHERS))
def test_nothing_at_a_place_hangs_on_later_tokens(experts: list[Transformer], weigher: Weigher) -> None:
    tokens, place = texts(2), 13
    other = tokens.clone()
    other[:, place + 1 :] = (other[:, place + 1 :] + 7) % VOCABULARY
    together = Ensemble(experts, weigher)
    assert torch.allclose(
        together.read(Inputs(tokens)).hidden[:, : place + 1],
        together.read(Inputs(other)).hidden[:, : place + 1],
        atol=1e-5,
    )


@pytest.mark.parametrize("weigher", WEIGHERS.values(), ids=list(WEIGHERS))
def test_decoding_with_caches_is_decoding_without(experts: list[Transformer], weigher: Weigher) -> None:
    together = Ensemble(experts, weigher)
    for prompt in ([4], [21, 20, 3, 2, 1, 22, 19]):
        text = list(prompt)
        for _ in range(12):
            text.append(int(together.read(Inputs(torch.tensor([text]))).hidden[0, -1].argmax()))
        found = generate(together, prompt, Sampling(temperature=0), max_new_tokens=12)
        assert list(found) == text[len(prompt) :]


def test_an_expert_reads_only_when_its_turn_comes_and_every_reading_is_counted(experts: list[Transformer]) -> None:
    tokens = torch.stack([torch.full((8,), 19), torch.tensor([19] * 3 + [0] * 5)])
    together = Ensemble(experts, near(1, every=4))
    _, cost = together.log_probabilities(Inputs(tokens), tokens)
    first, middle, third = (expert.cost(Shape(1, 8)).flops for expert in experts)
    weights = near(1, every=4)(tokens)
    asked = (weights > 0).any(dim=1)
    assert asked[0].tolist() == [False, False, True]
    expected = int((asked * torch.tensor([first, middle, third])).sum())
    assert cost.flops == expected

    decoding = Ensemble(experts, near(1, every=4))
    spent: list[AnswerSpent] = []
    drawn = generate(
        decoding, [19] * 6, Sampling(temperature=0), max_new_tokens=1, on_end=lambda _, each: spent.append(each)
    )
    assert len(list(drawn)) == 1
    assert [each.charge.flops for each in spent] == [experts[2].cost(Shape(1, 6, outputs=1)).flops]


def test_one_expert_alone_is_itself(experts: list[Transformer]) -> None:
    tokens = texts()
    alone = Ensemble(experts[:1], FixedExpertWeights([2.0]))
    expected = experts[0](tokens).log_softmax(dim=-1)
    assert torch.allclose(alone.read(Inputs(tokens)).hidden, expected, atol=1e-5)


def test_the_evaluator_of_models_takes_an_ensemble(experts: list[Transformer]) -> None:
    class Source:
        def batch(self, start: int, count: int) -> Batch:
            tokens = texts(8, CONTEXT + 1)[start : start + count]
            return Batch(Inputs(tokens[:, :-1].contiguous()), tokens[:, 1:].contiguous())

    evaluator = Evaluator(Source(), torch.ones(VOCABULARY), sequences=8, rows=4, device="cpu", precision="float32")
    together = Ensemble(experts, near())
    found = evaluator(together)
    batch = Source().batch(0, 8)
    assert found.loss == pytest.approx(
        -float(together.log_probabilities(batch.inputs, batch.targets)[0].mean()), abs=1e-5
    )


def test_isolated_documents_are_read_apart(experts: list[Transformer]) -> None:
    tokens = texts(1, 8)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
    together = Ensemble(experts, RunningLikelihood())
    found = together.read(Inputs(tokens, positions, documents)).hidden
    targets = torch.cat([tokens[:, 1:], torch.tensor([[IGNORED]])], dim=1)
    targets[0, 2] = IGNORED
    chosen, _ = together.log_probabilities(Inputs(tokens, positions, documents), targets)
    counted = targets[0] >= 0
    assert torch.allclose(
        chosen[0, counted], found[0].gather(1, targets[0].clamp_min(0)[:, None])[counted, 0], atol=1e-5
    )


@settings(deadline=None, max_examples=30)
@given(weights=st.lists(st.floats(0, 1), min_size=2, max_size=5).filter(lambda w: sum(w) > 0.01), k=st.integers(0, 5))
def test_the_heaviest_are_kept_and_add_up_to_one(weights: list[float], k: int) -> None:
    given_weights = torch.tensor([weights], dtype=torch.float64)
    given_weights = given_weights / given_weights.sum()
    if k > len(weights):
        with pytest.raises(UsageError, match="there are fewer"):
            keep_top(given_weights, k)
        return
    kept = keep_top(given_weights, k)
    assert float(kept.sum()) == pytest.approx(1)
    assert int((kept > 0).sum()) <= (k or len(weights))
    assert kept[0, int(given_weights.argmax())] >= given_weights.max() - 1e-12


def test_weights_are_those_of_the_formulas() -> None:
    tokens = torch.tensor([[5, 5, 19, 19]])
    found = near(every=2)(tokens)
    for place, mean in ((0, 5.0), (1, 5.0), (2, 29 / 3), (3, 29 / 3)):
        raw = [math.exp(-((mean - centre) ** 2) / 50 / 0.5) for centre in (5, 12, 19)]
        assert found[0, place].tolist() == pytest.approx([value / sum(raw) for value in raw], rel=1e-4)
    told = torch.tensor([[[0.0, 0.0], [-1.0, -2.0], [-3.0, -1.0]]])
    posterior = RunningLikelihood([0.25, 0.75])(torch.zeros(1, 3, dtype=torch.int64), told)
    assert posterior[0, 0].tolist() == pytest.approx([0.25, 0.75])
    first, second = 0.25 * math.exp(-1), 0.75 * math.exp(-2)
    assert posterior[0, 1, 0].item() == pytest.approx(first / (first + second))
    first, second = 0.25 * math.exp(-4), 0.75 * math.exp(-3)
    assert posterior[0, 2, 0].item() == pytest.approx(first / (first + second))


def test_a_mixture_takes_no_notice_of_experts_of_no_weight() -> None:
    logs = torch.tensor([[math.log(0.5), torch.nan, math.log(0.1)]])
    assert float(mixture(logs, torch.tensor([[0.25, 0.0, 0.75]])).exp()) == pytest.approx(0.2)


def test_log_probabilities_in_blocks_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight = torch.randn(3, 7, 8), torch.randn(VOCABULARY, 8)
    tokens = texts(3, 7)
    whole = token_log_probabilities(MatrixHead(weight), hidden, tokens)
    monkeypatch.setattr("shoestring.decode.ensemble.ROWS", 4)
    assert torch.allclose(token_log_probabilities(MatrixHead(weight), hidden, tokens), whole, atol=1e-6)


def test_what_cannot_be_an_ensemble_is_refused() -> None:
    with pytest.raises(UsageError, match="vocabularies differ: 23, 24"):
        Ensemble([expert(0), expert(1, vocabulary=24)], FixedExpertWeights([1, 1]))
    with pytest.raises(UsageError, match="at least one"):
        Ensemble([], FixedExpertWeights([1]))
    with pytest.raises(UsageError, match="not all 0"):
        FixedExpertWeights([0.0, 0.0])
    with pytest.raises(UsageError, match="not 0 for all"):
        RunningLikelihood([-1.0, 2.0])
    together = Ensemble([expert(0), expert(1, context=12)], FixedExpertWeights([1, 1]))
    assert together.about.context == 12
    with pytest.raises(UsageError, match="13 tokens do not fit in a context of 12"):
        together.read(Inputs(torch.zeros(1, 13, dtype=torch.int64)), together.new_cache(1, 24))
    with pytest.raises(UsageError, match="one sequence"):
        together.new_cache(2, 8)
    with pytest.raises(UsageError, match="no layers of its own"):
        together.read(Inputs(torch.zeros(1, 3, dtype=torch.int64)), tap=("blocks.0",))
    assert together.cost(Shape(1, 4)) == Cost.beside(*(one.cost(Shape(1, 4)) for one in together.experts))
