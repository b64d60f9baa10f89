"""Test-time training: the nearest are found, each is one step, and the model is afterwards what it was."""

from pathlib import Path

import pytest
import torch

from shoestring.contract.edit import Evidence
from shoestring.errors import UsageError
from shoestring.objective.cross_entropy import plain
from shoestring.objective.next_token import NextToken
from shoestring.tune.edits.lora import LoRA
from shoestring.tune.neighbours import NearestNeighbours, Neighbours, hashed_pairs
from tests.tune.making import folder_of, opened

TEXTS = [[(start + place * step) % 512 for place in range(30)] for start in (3, 100) for step in (1, 7, 11)]


def test_the_nearest_come_first() -> None:
    neighbours = Neighbours(TEXTS)
    query = TEXTS[4][:20]
    found = neighbours.nearest(query, 6)
    distances = [float((hashed_pairs(text) - hashed_pairs(query)).square().sum()) for text in found]
    assert distances == sorted(distances)
    assert found[0] == TEXTS[4]
    assert neighbours.nearest(query, 2) == found[:2]


@pytest.mark.parametrize("adapters", [False, True])
def test_each_neighbour_is_one_step_and_all_is_undone(adapters: bool, tmp_path: Path) -> None:
    model = opened(folder_of("llama", tmp_path / "model")).requires_grad_(True)
    if adapters:
        model = LoRA(rank=2).apply(model, LoRA(rank=2).decide(model, Evidence()))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    query = TEXTS[1][:20]
    tuner = NearestNeighbours(model, Neighbours(TEXTS), NextToken(plain), count=3, lr=3e-3)
    with tuner.tuned(query) as spent:
        after = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        tuned = model(torch.tensor([query])).detach()
    assert spent.charge.tokens == 3 * 29
    assert spent.charge.flops > 0
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())
    # by hand: one step of Adam each, the nearest first
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=3e-3)
    for text in Neighbours(TEXTS).nearest(query, 3):
        ids = torch.tensor([text])
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.testing.assert_close(model(torch.tensor([query])).detach(), tuned, atol=1e-4, rtol=1e-4)


def test_it_reads_better_what_is_like_its_neighbours(tmp_path: Path) -> None:
    model = opened(folder_of("llama", tmp_path / "model")).requires_grad_(True)
    query = torch.tensor([TEXTS[2]])

    def loss() -> float:
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(model(query[:, :-1])[0], query[0, 1:]))

    first = loss()
    with NearestNeighbours(model, Neighbours(TEXTS), NextToken(plain), count=2, lr=1e-2).tuned(TEXTS[2]):
        assert loss() < first - 0.2
    assert loss() == first


def test_nothing_to_tune_or_to_learn_from_is_refused(tmp_path: Path) -> None:
    model = opened(folder_of("llama", tmp_path / "model")).requires_grad_(False)
    tuner = NearestNeighbours(model, Neighbours(TEXTS), NextToken(plain))
    with pytest.raises(UsageError, match="takes a gradient"), tuner.tuned([1, 2, 3]):
        pass
    with pytest.raises(UsageError, match="no text of two tokens"):
        Neighbours([[1]])
