"""Rows of different lengths in one cache: each reads as it would alone."""

import pytest
import torch
from torch import Tensor

from shoestring.contract.batch import Inputs
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer

SHAPE = ModelConfig(layers=2, width=32, heads=4, key_value_heads=2, vocabulary=50, context=32)


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(1)
    made = Transformer(SHAPE)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=parameter.shape[1] ** -0.5)
    return made.requires_grad_(False).eval()


def text(length: int, seed: int) -> Tensor:
    return torch.randint(50, (length,), generator=torch.Generator().manual_seed(seed))


def padded(rows: list[Tensor]) -> Inputs:
    lengths = torch.tensor([len(row) for row in rows])
    return Inputs(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths=lengths)


def alone(model: Transformer, tokens: Tensor) -> Tensor:
    return model(tokens[None])[0]


def test_rows_of_different_lengths_read_as_each_does_alone(model: Transformer) -> None:
    whole = [text(n, n) for n in (5, 11, 8)]
    cache, taken, found = model.new_cache(3, 32), [0, 0, 0], [[], [], []]  # type: ignore[var-annotated]
    for pieces in ([5, 2, 1], [0, 8, 1], [0, 1, 1], [0, 0, 5]):
        parts = [whole[row][taken[row] : taken[row] + new] for row, new in enumerate(pieces)]
        logits = model.read(padded(parts), cache).logits()
        for row, new in enumerate(pieces):
            found[row].append(logits[row, :new])
            taken[row] += new
    assert cache.lengths == [5, 11, 8]
    for row, tokens in enumerate(whole):
        torch.testing.assert_close(torch.cat(found[row]), alone(model, tokens), atol=1e-5, rtol=1e-5)


def test_padding_at_the_right_changes_nothing_without_a_cache(model: Transformer) -> None:
    whole = [text(n, n) for n in (3, 9)]
    logits = model.read(padded(whole)).logits()
    for row, tokens in enumerate(whole):
        torch.testing.assert_close(logits[row, : len(tokens)], alone(model, tokens), atol=1e-5, rtol=1e-5)


def test_a_tree_of_drafts_reads_each_branch_as_if_it_were_the_text(model: Transformer) -> None:
    """Two rows with prompts of different lengths, and a tree of three tokens: 7, then 8 or 9 after it."""
    prompts = [text(4, 1), text(7, 2)]
    cache = model.new_cache(2, 32)
    model.read(padded(prompts), cache)
    tree = torch.tensor([[7, 8, 9], [7, 8, 9]])
    sees = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]]).bool().expand(2, -1, -1)
    depth = torch.tensor([0, 1, 1])
    positions = torch.tensor([len(prompt) for prompt in prompts])[:, None] + depth
    logits = model.read(Inputs(tree, positions, mask=sees), cache).logits()
    for row, prompt in enumerate(prompts):
        for branch, place in (([7, 8], 1), ([7, 9], 2)):
            expected = alone(model, torch.cat([prompt, torch.tensor(branch)]))[-1]
            torch.testing.assert_close(logits[row, place], expected, atol=1e-5, rtol=1e-5)


def test_cropped_and_taken_rows_go_on_as_if_nothing_else_had_been_read(model: Transformer) -> None:
    cache = model.new_cache(2, 32)
    first, second = text(6, 3), text(9, 4)
    model.read(padded([first, second]), cache)
    snapshot = cache.snapshot()
    model.read(Inputs(torch.zeros(2, 3, dtype=torch.int64)), cache)
    cache.restore(snapshot)
    assert cache.lengths == [6, 9]
    cache.crop([4, 9])
    assert cache.lengths == [4, 9]
    three = cache.take(torch.tensor([1, 0, 0]))
    assert three.lengths == [9, 4, 4]
    more = text(2, 5)
    logits = model.read(Inputs(more.expand(3, -1)), three).logits()
    for row, before in enumerate((second, first[:4], first[:4])):
        torch.testing.assert_close(logits[row], alone(model, torch.cat([before, more]))[-2:], atol=1e-5, rtol=1e-5)
    assert cache.lengths == [4, 9]


def test_what_does_not_fit_is_refused(model: Transformer) -> None:
    cache = model.new_cache(2, 8)
    with pytest.raises(UsageError, match="2 rows cannot take a pass of 3"):
        model.read(Inputs(torch.zeros(3, 2, dtype=torch.int64)), cache)
    with pytest.raises(UsageError, match="9 tokens do not fit in a context of 8"):
        model.read(Inputs(torch.zeros(2, 9, dtype=torch.int64)), cache)
    with pytest.raises(UsageError, match="one sequence a row"):
        model.read(Inputs(*torch.zeros(3, 2, 4, dtype=torch.int64)), cache)
    assert cache.lengths == [0, 0]
    assert cache.nbytes == 2 * 2 * 2 * 2 * 8 * 8 * 4
