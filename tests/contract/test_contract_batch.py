"""A batch in parts, padded and moved: every tensor of it goes along."""

import torch

from shoestring.contract.batch import IGNORED, Batch, Inputs


def batch() -> Batch:
    numbers = torch.arange(12).view(4, 3)
    inputs = Inputs(
        numbers, numbers + 1, numbers + 2, torch.tensor([3, 2, 1, 3]), torch.ones(4, 3, 3, dtype=torch.bool)
    )
    return Batch(inputs, numbers + 3, numbers.float(), {"advantage": numbers.double()})


def tensors(of: Batch) -> list[torch.Tensor]:
    found = [*of.inputs, of.targets, of.weights, *of.extra.values()]
    return [tensor for tensor in found if tensor is not None]


def test_micro_batches_together_are_the_batch() -> None:
    parts = batch().split(3)
    assert [part.rows for part in parts] == [3, 1]
    for whole, *pieces in zip(tensors(batch()), *map(tensors, parts), strict=True):
        assert torch.equal(torch.cat(pieces), whole)
    assert len(batch().split(4)) == len(batch().split(9)) == 1


def test_rows_of_padding_are_read_and_count_nothing() -> None:
    padded = batch().padded(6)
    assert all(len(tensor) == 6 for tensor in tensors(padded))
    for whole, longer in zip(tensors(batch()), tensors(padded), strict=True):
        assert torch.equal(longer[:4], whole)
    assert (padded.targets[4:] == IGNORED).all()
    assert padded.weights is not None
    assert padded.weights[4:].sum() == 0
    assert padded.tokens == batch().tokens
    assert padded.inputs.lengths is not None
    assert padded.inputs.lengths[4:].tolist() == [1, 1]
    assert padded.inputs.mask is not None
    assert padded.inputs.mask[4:].all()
    assert batch().padded(2).rows == 4


def test_every_tensor_moves() -> None:
    assert all(tensor.is_meta for tensor in tensors(batch().to("meta")))
