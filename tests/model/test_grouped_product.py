"""Products of sorted rows, by their definition, and differentiated twice."""

import torch

from shoestring.model.grouped_product import grouped_product


def test_each_group_has_its_matrix_and_gradients_are_right_twice() -> None:
    torch.manual_seed(0)
    counts = [2, 0, 3]
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    wanted = torch.stack([weights[group] @ row for row, group in zip(x, [0, 0, 2, 2, 2], strict=True)])
    torch.testing.assert_close(grouped_product(x, weights, counts), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert grouped_product(x.float(), weights, counts).dtype == torch.bfloat16
    assert torch.autograd.gradcheck(lambda x, w: grouped_product(x, w, counts), (x, weights))
    assert torch.autograd.gradgradcheck(lambda x, w: grouped_product(x, w, counts), (x, weights))
