from typing import Any

import pytest
import torch
from reference_adamw import adamw

from shoestring.optim.adamw import AdamW


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_agrees_with_the_reference_over_several_steps(weight_decay: float) -> None:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(3, 5))
    before = parameter.detach().clone()
    options: dict[str, Any] = {"lr": 0.02, "beta1": 0.8, "beta2": 0.9, "epsilon": 1e-6, "weight_decay": weight_decay}
    optimizer = AdamW([parameter], **options)
    gradients = [torch.randn(3, 5) for _ in range(6)]
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    for i in range(3):
        for j in range(5):
            expected = adamw(before[i, j].item(), [g[i, j].item() for g in gradients], **options)
            assert parameter[i, j].item() == pytest.approx(expected, rel=2e-6, abs=2e-6)


def test_is_fused_for_each_group_that_can_be() -> None:
    named = [torch.nn.Parameter(torch.ones(2, dtype=kind)) for kind in (torch.float32, torch.bfloat16)]
    elsewhere = torch.nn.Parameter(torch.ones(2, device="meta"))
    optimizer = AdamW([{"params": named}, {"params": [elsewhere]}])
    assert [group["fused"] for group in optimizer.param_groups] == [True, None]


def test_mixed_types_step_in_one_group() -> None:
    parameters = [torch.nn.Parameter(torch.ones(4, dtype=kind)) for kind in (torch.float32, torch.bfloat16)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    AdamW(parameters, lr=0.5, weight_decay=0.0).step()
    for parameter in parameters:
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, 0.5))
