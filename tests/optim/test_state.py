import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shoestring.errors import ShoestringError
from shoestring.optim.adamw import AdamW
from shoestring.optim.composite import Composite
from shoestring.optim.muon import Muon
from shoestring.optim.state import flatten_state, restore_state


def made(kind: type[torch.optim.Optimizer] = AdamW, name: str = "w", size: int = 3, **options: Any) -> Any:
    parameter = nn.Parameter(torch.ones(size, 2))
    parameter.grad = torch.full((size, 2), 0.5)
    return kind([{"params": [(name, parameter)], "role": "matrix"}], **options)


def saved(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    optimizer.step()
    tensors, record = flatten_state(optimizer)
    return tensors, json.loads(json.dumps(record))


def test_keys_are_names_and_the_record_is_plain() -> None:
    tensors, record = saved(made(beta1=0.7))
    assert set(tensors) == {"w.step", "w.exp_avg", "w.exp_avg_sq"}
    assert record["optimizer"] == "AdamW"
    assert record["groups"][0]["betas"] == [0.7, 0.95]
    assert record["tensors"]["w.exp_avg"] == ["float32", 3, 2]


def test_options_come_back_as_they_were_and_tensors_are_copies() -> None:
    tensors, record = saved(made(beta1=0.7, lr=0.125))
    fresh = made()
    restore_state(fresh, tensors, record)
    (group,) = fresh.param_groups
    assert group["betas"] == (0.7, 0.95)
    assert group["lr"] == 0.125
    before = tensors["w.exp_avg"].clone()
    fresh.step()
    assert torch.equal(tensors["w.exp_avg"], before)


def test_unnamed_parameters_go_by_number() -> None:
    parameters = [nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    optimizer = Composite(Muon(parameters[:1]), AdamW(parameters[1:]))
    for parameter in parameters:
        parameter.grad = torch.ones(2, 2)
    tensors, record = saved(optimizer)
    assert set(tensors) == {"0.momentum", "1.step", "1.exp_avg", "1.exp_avg_sq"}
    assert record["optimizer"] == "Muon+AdamW"


def test_an_optimizer_that_has_not_stepped_restores_too() -> None:
    tensors, record = flatten_state(made())
    assert tensors == {}
    fresh = made()
    fresh.step()
    restore_state(fresh, tensors, record)
    assert not fresh.state


def test_plain_values_in_the_state_come_back() -> None:
    optimizer = made(torch.optim.SGD, momentum=0.9)
    optimizer.step()
    (parameter,) = optimizer.param_groups[0]["params"]
    optimizer.state[parameter]["count"] = 7
    tensors, record = flatten_state(optimizer)
    fresh = made(torch.optim.SGD, momentum=0.9)
    restore_state(fresh, tensors, record)
    (state,) = fresh.state.values()
    assert state["count"] == 7


def without(tensors: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != key}


@pytest.mark.parametrize(
    ("fresh", "change", "message"),
    [
        (made(Muon), lambda t: t, "the optimiser was AdamW and is now Muon"),
        (made(name="v"), lambda t: t, r"in parameter group 0 w was \[3, 2\] and is now absent"),
        (made(size=4), lambda t: t, r"in parameter group 0 w was \[3, 2\] and is now \[4, 2\]"),
        (made(), lambda t: without(t, "w.exp_avg"), r"w.exp_avg was \['float32', 3, 2\] and is now absent"),
        (made(), lambda t: {**t, "x.step": t["w.step"]}, "x.step was absent"),
        (made(), lambda t: {**t, "w.exp_avg": torch.ones(2, 3)}, r"is now \['float32', 2, 3\]"),
        (made(), lambda t: {**t, "w.exp_avg": t["w.exp_avg"].double()}, r"is now \['float64', 3, 2\]"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(fresh: Any, change: Any, message: str) -> None:
    tensors, record = saved(made(lr=0.5))
    groups = copy.deepcopy(fresh.state_dict())
    with pytest.raises(ShoestringError, match=message):
        restore_state(fresh, change(tensors), record)
    assert fresh.state_dict() == groups


def test_other_groups_options_and_roles_are_refused() -> None:
    tensors, record = saved(made(torch.optim.SGD))
    for part, message in (
        ({"groups": record["groups"] * 2}, "the number of parameter groups was 2 and is now 1"),
        ({"groups": [{**record["groups"][0], "role": "vector"}]}, "the role of parameter group 0 was vector"),
        ({"groups": [{**record["groups"][0], "rho": 1}]}, "in parameter group 0 rho was an option and is now absent"),
    ):
        with pytest.raises(ShoestringError, match=message):
            restore_state(made(torch.optim.SGD), tensors, {**record, **part})
    with pytest.raises(ShoestringError, match="damaged: it has no groups, values"):
        restore_state(
            made(torch.optim.SGD), tensors, {k: v for k, v in record.items() if k not in ("groups", "values")}
        )


def test_what_cannot_be_saved_is_said() -> None:
    optimizer = made()
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    with pytest.raises(ShoestringError, match="lr of the optimiser cannot be saved: it is a Tensor"):
        flatten_state(optimizer)


def test_two_parameters_of_one_name_are_refused() -> None:
    optimizer = Composite(made(), made(Muon))
    with pytest.raises(ShoestringError, match="two parameters named w"):
        flatten_state(optimizer)
