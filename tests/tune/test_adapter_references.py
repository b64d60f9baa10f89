"""Each adapter beside a slow one written from its paper, number by number."""

import math

import pytest
import torch
from torch import Tensor, nn

from shoestring.contract.objective import At
from shoestring.tune.edits.adalora import AdaLoRA, SingularLinear
from shoestring.tune.edits.compacter import Compacter, HypercomplexLinear, SlowFactors
from shoestring.tune.edits.dora import DoRA
from shoestring.tune.edits.key_value_bottleneck import KeyValueBottleneck
from shoestring.tune.edits.lora import LoRA
from shoestring.tune.edits.road import RoAd
from shoestring.tune.edits.rslora import RankStabilisedLoRA

IN, OUT, RANK = 6, 8, 3


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape)


@pytest.fixture
def base() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(IN, OUT)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, IN, generator=torch.Generator().manual_seed(1))


def by_hand(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """y_i = sum_j W_ij x_j + b_i."""
    out = torch.zeros(*x.shape[:-1], weight.shape[0])
    for place in range(weight.shape[0]):
        out[..., place] = sum(weight[place, column] * x[..., column] for column in range(weight.shape[1])) + bias[place]
    return out


@pytest.mark.parametrize(
    ("edit", "scale"),
    [(LoRA(rank=RANK, alpha=5.0), 5 / RANK), (RankStabilisedLoRA(rank=RANK, alpha=5.0), 5 / math.sqrt(RANK))],
    ids=["lora", "rslora"],
)
def test_low_rank(edit: LoRA, scale: float, base: nn.Linear, x: Tensor) -> None:
    down, up = drawn(RANK, IN), drawn(OUT, RANK)
    weight = base.weight.detach().clone()
    for row in range(OUT):
        for column in range(IN):
            weight[row, column] += scale * sum(up[row, k] * down[k, column] for k in range(RANK))
    layer = edit.place(base, {"down": down, "up": up}, edit.values())
    torch.testing.assert_close(layer(x), by_hand(weight, base.bias, x))


def test_dora(base: nn.Linear, x: Tensor) -> None:
    edit = DoRA(rank=RANK, alpha=5.0)
    down, up, magnitude = drawn(RANK, IN), drawn(OUT, RANK), drawn(OUT).abs()
    moved = base.weight.detach() + 5 / RANK * up @ down
    weight = torch.stack(
        [magnitude[row] * moved[row] / math.sqrt(float((moved[row] ** 2).sum())) for row in range(OUT)]
    )
    layer = edit.place(base, {"down": down, "up": up, "magnitude": magnitude}, edit.values())
    torch.testing.assert_close(layer(x), by_hand(weight, base.bias, x))
    torch.testing.assert_close(layer.computed_weight(), weight)


def test_dora_passes_no_gradient_through_the_norm(base: nn.Linear, x: Tensor) -> None:
    edit = DoRA(rank=RANK)
    down, up, magnitude = drawn(RANK, IN), drawn(OUT, RANK), drawn(OUT).abs()
    layer = edit.place(base, {"down": down, "up": up, "magnitude": magnitude}, edit.values())
    layer(x).square().sum().backward()
    slow = [one.clone().requires_grad_() for one in (down, up, magnitude)]
    moved = base.weight.detach() + edit.scale * slow[1] @ slow[0]
    weight = (slow[2] / moved.detach().norm(dim=1))[:, None] * moved
    (x @ weight.T + base.bias.detach()).square().sum().backward()
    for own, other in zip((layer.down, layer.up, layer.magnitude), slow, strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("each", [1, 2, 4])
def test_road(each: int, base: nn.Linear, x: Tensor) -> None:
    group = 4
    edit = RoAd(each=each, group=group)  # type: ignore[arg-type]
    theta, alpha = drawn(OUT * each // 2), drawn(OUT * each // 2)
    plain = by_hand(base.weight, base.bias, x)
    expected = torch.zeros_like(plain)
    half = group // 2
    for first in range(0, OUT, group):
        for pair in range(half):

            def at(kind: int, first: int = first, pair: int = pair) -> int:
                return first // group * each * half + kind * half + pair

            # which angle each entry of the block has: one for all, one a row, or one each (peft's order)
            kinds = {1: (0, 0, 0, 0), 2: (0, 0, 1, 1), 4: (0, 2, 3, 1)}[each]
            one, other = plain[..., first + pair], plain[..., first + half + pair]
            entries = [(float(alpha[at(kind)]), float(theta[at(kind)])) for kind in kinds]
            (a11, t11), (a12, t12), (a21, t21), (a22, t22) = entries
            expected[..., first + pair] = a11 * math.cos(t11) * one - a12 * math.sin(t12) * other
            expected[..., first + half + pair] = a21 * math.sin(t21) * one + a22 * math.cos(t22) * other
    layer = edit.place(base, {"theta": theta, "alpha": alpha}, edit.values())
    torch.testing.assert_close(layer(x), expected)


def test_compacter(base: nn.Linear, x: Tensor) -> None:
    edit = Compacter(n=2, bottleneck=4)
    torch.manual_seed(3)
    slow = SlowFactors(drawn(2, 2, 2))
    begun = edit.begin(base, torch.Generator().manual_seed(1))
    layer = edit.place(base, begun, {"slow": slow})
    assert isinstance(layer, HypercomplexLinear)
    with torch.no_grad():
        for parameter in layer.own().values():
            parameter.copy_(drawn(*parameter.shape))

    def whole(left: Tensor, right: Tensor) -> Tensor:
        return sum((torch.kron(slow.slow[i], torch.outer(left[i], right[i])) for i in range(2)), torch.zeros(()))

    plain = by_hand(base.weight, base.bias, x)
    inner = torch.nn.functional.gelu(plain @ whole(layer.down_left, layer.down_right).T + layer.down_bias)
    expected = plain + inner @ whole(layer.up_left, layer.up_right).T + layer.up_bias
    torch.testing.assert_close(layer(x), expected)


def test_key_value_bottleneck(base: nn.Linear, x: Tensor) -> None:
    edit = KeyValueBottleneck(codebooks=3, keys=4, width=2)
    torch.manual_seed(3)
    projection, keys, values = drawn(3, 2, IN), drawn(3, 4, 2), drawn(3, 4, OUT)
    layer = edit.place(base, {"projection": projection, "keys": keys, "values": values}, {})
    expected = by_hand(base.weight, base.bias, x)
    for row in range(2):
        for place in range(5):
            for book in range(3):
                point = projection[book] @ x[row, place]
                distances = [float((point - key).square().sum()) for key in keys[book]]
                expected[row, place] += values[book, distances.index(min(distances))] / 3
    torch.testing.assert_close(layer(x), expected)


def test_an_update_stays_where_it_was_learnt(base: nn.Linear, x: Tensor) -> None:
    """What the paper is about: values that no token fetched do not move."""
    edit = KeyValueBottleneck(codebooks=2, keys=50, width=2)
    torch.manual_seed(3)
    layer = edit.place(base, {"projection": drawn(2, 2, IN), "keys": drawn(2, 50, 2)}, {})
    layer(x[:1, :1]).sum().backward()
    gradient = layer.own()["values"].grad
    assert gradient is not None
    assert int((gradient.abs().sum(-1) > 0).sum()) == 2  # one of each codebook


class Matrices(nn.Module):
    """Two matrices with adapters, as far as AdaLoRA's steps look at a model."""

    def __init__(self, edit: AdaLoRA) -> None:
        super().__init__()
        torch.manual_seed(4)
        generator = torch.Generator().manual_seed(2)
        for name in ("one", "two"):
            layer = nn.Linear(IN, OUT).requires_grad_(False)
            self.add_module(name, edit.place(layer, edit.begin(layer, generator), edit.values()))


def test_adalora_allocates_as_its_paper_says() -> None:
    edit = AdaLoRA(
        rank=1, first_rank=3, start=0.2, rest=0.2, smoothing=0.8, uncertainty=0.7, regularisation=0.05, every=2
    )
    model = Matrices(edit)
    layers = [module for module in model.modules() if isinstance(module, SingularLinear)]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    x = drawn(7, IN)
    steps, kept_seen = 10, []
    # of each layer and parameter: the running means, kept here entry by entry
    means = [[torch.zeros_like(p) for p in (one.left, one.values, one.right)] for one in layers]
    spreads = [[torch.zeros_like(p) for p in (one.left, one.values, one.right)] for one in layers]
    for step in range(steps):
        at = At(step, step / steps)
        optimiser.zero_grad()
        torch.stack([(layer(x) - 1).square().mean() for layer in layers]).sum().backward()
        for place, layer in enumerate(layers):
            for number, parameter in enumerate((layer.left, layer.values, layer.right)):
                assert parameter.grad is not None
                importance = (parameter * parameter.grad).abs().detach()
                means[place][number] = 0.8 * means[place][number] + 0.2 * importance
                spreads[place][number] = 0.7 * spreads[place][number] + 0.3 * (importance - means[place][number]).abs()
        before = [[p.grad.clone() for p in (one.left, one.right)] for one in layers]  # type: ignore[union-attr]
        spent = edit.before_step(model, at)  # type: ignore[arg-type]
        assert spent.flops == sum(2 * 2 * 3 * 3 * (IN + OUT) for _ in layers)
        for layer, grads in zip(layers, before, strict=True):
            left, right = layer.left.detach().clone().requires_grad_(), layer.right.detach().clone().requires_grad_()
            one = torch.eye(3)
            pull = 0.05 * ((left.T @ left - one).square().sum() + (right @ right.T - one).square().sum())
            pull.backward()
            assert left.grad is not None
            assert right.grad is not None
            torch.testing.assert_close(layer.left.grad, grads[0] + left.grad)
            torch.testing.assert_close(layer.right.grad, grads[1] + right.grad)
        optimiser.step()
        moved = [one.values.detach().clone() for one in layers]
        edit.after_step(model, at)  # type: ignore[arg-type]
        progress = step / steps
        fallen = min(1.0, max(0.0, (progress - 0.2) / 0.6))
        budget = round(2 * (1 + 2 * (1 - fallen) ** 3))
        scores = []
        for mean, spread in zip(means, spreads, strict=True):
            left, values, right = (a * b for a, b in zip(mean, spread, strict=True))
            scores += [float(values[k] + left[:, k].mean() + right[k].mean()) for k in range(3)]
        allocates = progress >= 0.2 and (step % 2 == 0 or progress >= 0.8)
        best = sorted(range(6), key=lambda k: -scores[k])[: budget if allocates else 6]
        expected = [float(moved[k // 3][k % 3]) if k in best else 0.0 for k in range(6)]
        found = torch.cat([one.values.detach() for one in layers]).tolist()
        assert found == pytest.approx(expected)
        kept_seen.append(sum(value != 0 for value in found))
    assert kept_seen[0] == 6
    assert kept_seen[-1] == 2
