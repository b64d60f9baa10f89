"""The matrix that changes itself has a backward pass written by hand: it is compared with differences."""

import pytest
import torch

from shoestring.model.srwm import SelfReferential


@pytest.mark.parametrize("documents", [None, [[0, 0, 1, 1, 1]]], ids=["one text", "two documents"])
def test_gradients_are_those_of_differences(documents: list[list[int]] | None) -> None:
    torch.manual_seed(0)
    mixer = SelfReferential(4, 2, 2, 2, chunk=2).double()
    torch.nn.init.normal_(mixer.start)
    x = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    of = None if documents is None else torch.tensor(documents)

    def said(x: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.func.functional_call(mixer, {"start": start}, (x, None, None, of))
        return found

    inputs = (x, mixer.start.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(said, inputs)
    assert torch.autograd.gradgradcheck(said, inputs)
