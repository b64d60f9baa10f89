"""Weights gathered in one storage are the same weights, aligned."""

import torch

from shoestring.lowbit import kernels


def test_gathered_tensors_are_equal_aligned_and_apart() -> None:
    originals = [
        torch.arange(5 << 20, dtype=torch.int64).to(torch.uint8),
        torch.rand(3, 7),
        torch.randint(-8, 8, (9, 11), dtype=torch.int8).t(),
        torch.empty(0, dtype=torch.uint8),
        torch.rand(1000),
    ]
    copies = kernels.gather(originals)
    assert [copy.data_ptr() % 64 for copy in copies if copy.numel()] == [0] * 4
    assert len({copy.untyped_storage().data_ptr() for copy in copies}) == 1
    for original, copy in zip(originals, copies, strict=True):
        assert (copy.dtype, copy.is_contiguous()) == (original.dtype, True)
        assert torch.equal(copy, original)
    copies[1].zero_()
    assert torch.equal(copies[0], originals[0])
    assert torch.equal(copies[2], originals[2])
    assert kernels.gather([]) == []
