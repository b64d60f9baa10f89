import pytest
import torch
from torch import nn

from shoestring.optim.adamw import AdamW
from shoestring.optim.composite import Composite, scale_learning_rates
from shoestring.optim.muon import Muon


def pair() -> tuple[nn.Parameter, nn.Parameter]:
    torch.manual_seed(0)
    matrix, vector = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(5))
    matrix.grad, vector.grad = torch.randn(4, 6), torch.randn(5)
    return matrix, vector


def composite(matrix: nn.Parameter, vector: nn.Parameter) -> Composite:
    return Composite(Muon([matrix], lr=0.1), AdamW([vector], lr=0.01))


def test_one_step_is_a_step_of_each() -> None:
    together, apart = pair(), pair()
    optimizer = composite(*together)
    parts = Muon([apart[0]], lr=0.1), AdamW([apart[1]], lr=0.01)
    for _ in range(3):
        optimizer.step()
        for part in parts:
            part.step()
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))
    assert set(optimizer.state) == set(together)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in together)


def test_is_an_optimizer_to_torch() -> None:
    optimizer = composite(*pair())
    calls: list[str] = []
    optimizer.register_step_post_hook(lambda *_: calls.append("step"))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    optimizer.step()
    schedule.step()
    assert calls == ["step"]
    assert [group["lr"] for group in optimizer.parts[0].param_groups] == [0.05]
    assert "lr: 0.05" in repr(optimizer)


def test_groups_are_the_parts_own_also_after_loading() -> None:
    optimizer = composite(*pair())
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[1]["lr"] = 0.125
    assert optimizer.parts[1].param_groups[0]["lr"] == 0.125
    optimizer.parts[0].load_state_dict(optimizer.parts[0].state_dict())
    optimizer.param_groups[0]["lr"] = 0.25
    assert optimizer.parts[0].param_groups[0]["lr"] == 0.25


def test_learning_rates_scale_from_their_base_however_often() -> None:
    optimizer = composite(*pair())
    for factor in (0.5, 0.1, 0.0, 0.25):
        scale_learning_rates(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == [0.1 * factor, 0.01 * factor]
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.1, 0.01]
    other = composite(*pair())
    other.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in other.param_groups] == [0.025, 0.0025]
    scale_learning_rates(other, 1.0)
    assert [group["lr"] for group in other.param_groups] == [0.1, 0.01]


def test_scales_any_optimizer_of_torch() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.5)
    scale_learning_rates(optimizer, 0.5)
    scale_learning_rates(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_each_part_loads_its_own_groups() -> None:
    def three() -> Composite:
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(size, 2)) for size in (3, 4, 5)]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        return Composite(AdamW([{"params": [p]} for p in parameters[:2]], lr=0.1), Muon(parameters[2:], lr=0.2))

    optimizer, other = three(), three()
    optimizer.step()
    other.load_state_dict(optimizer.state_dict())
    for ours, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_state_of_other_groups_is_refused_before_anything_is_loaded() -> None:
    matrix, vector = pair()
    optimizer = composite(matrix, vector)
    optimizer.step()
    other = Composite(Muon([nn.Parameter(torch.ones(4, 6))]), AdamW([nn.Parameter(torch.ones(5)) for _ in range(2)]))
    with pytest.raises(ValueError, match="other parameter groups"):
        other.load_state_dict(optimizer.state_dict())
    assert not other.state


def test_what_a_composite_refuses() -> None:
    matrix, vector = pair()
    with pytest.raises(ValueError, match="more than one parameter group"):
        Composite(Muon([matrix]), AdamW([matrix, vector]))
    optimizer = composite(matrix, vector)
    with pytest.raises(ValueError, match="no closure"):
        optimizer.step(lambda: 0.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one of the parts"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    with pytest.raises(AttributeError, match="nonsense"):
        optimizer.nonsense  # noqa: B018
