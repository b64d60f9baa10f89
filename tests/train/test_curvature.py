"""The curvature of a transformer's batch, against torch's own derivatives and its counter of operations."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from shoestring.config import build
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModel
from shoestring.contract.objective import At, Loss
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.objective.cross_entropy import plain
from shoestring.objective.next_token import NextToken
from shoestring.optim.curvature import LogitsCurvature
from shoestring.train.curvature import curvature_of
from shoestring.train.execution import prepare_blocks
from shoestring.train.sections import ExecutionConfig
from tests.flop_counting import CPU_ATTENTION

SIZES = {"layers": 2, "width": 32, "heads": 4, "vocabulary": 50, "context": 24}
VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied, grouped": {"tied": False, "key_value_heads": 2},
    "squared ReLU": {"channel_mixer": "squared_relu"},
}


def make(variant: str = "tied") -> Transformer:
    torch.manual_seed(1)
    model = Transformer(build(ModelConfig, {**SIZES, **VARIANTS[variant]}))
    with torch.no_grad():
        for parameter in model.parameters():  # away from its start, where every block gives zero
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model


def batch(packed: bool) -> Batch:
    torch.manual_seed(2)
    inputs, targets = torch.randint(50, (2, 3, 24))
    if not packed:
        return Batch(Inputs(inputs), targets)
    places = torch.arange(24)
    targets[:, 7::8] = -100
    return Batch(Inputs(inputs, (places % 8).repeat(3, 1), (places // 8).repeat(3, 1)), targets)


def curvature(model: Transformer, given: Batch, **options: Any) -> LogitsCurvature:
    settings = {"device": "cpu", "precision": "float32", "seed": 0, **options}
    found = curvature_of(NextToken(plain), model, given, At(), **settings)
    assert isinstance(found, LogitsCurvature)
    return found


def probe(model: Transformer) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(p.shape, generator=generator) for p in model.parameters()]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_hessian_vector_products_are_differences_of_gradients(variant: str, packed: bool) -> None:
    """H v = (g(w + e v) - g(w - e v)) / 2 e, in float64, from the model's own forward pass."""
    model, given = make(variant).double(), batch(packed)
    parameters = list(model.parameters())
    vectors = [vector.double() for vector in probe(model)]

    def gradients(shift: float) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            torch._foreach_add_(parameters, vectors, alpha=shift)  # type: ignore[arg-type]
        loss = F.cross_entropy(model.read(given.inputs).logits().flatten(0, 1), given.targets.flatten())
        found = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            torch._foreach_add_(parameters, vectors, alpha=-shift)  # type: ignore[arg-type]
        return found

    found = curvature(model, given).hessian_vector_products(parameters, vectors)
    small = 1e-6
    for product, up, down in zip(found, gradients(small), gradients(-small), strict=True):
        # the loss is taken in float32, so to about a thousandth
        torch.testing.assert_close(
            product, (up - down) / (2 * small), rtol=1e-2, atol=2e-3 * float(product.abs().max())
        )
    assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_flops_are_those_torch_counts(variant: str, packed: bool) -> None:
    model, given = make(variant), batch(packed)
    parameters, vectors, found = list(model.parameters()), probe(model), curvature(model, given)
    for call in (
        lambda: found.sampled_gradients(parameters),
        lambda: found.hessian_vector_products(parameters, vectors),
    ):
        before = found.flops
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            call()
        assert found.flops - before == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_sampled_labels_are_counted_where_targets_are_and_follow_the_seed() -> None:
    model, given = make(), batch(True)
    parameters = list(model.parameters())
    first, count = curvature(model, given, seed=3).sampled_gradients(parameters)
    assert count == given.tokens < given.targets.numel()
    torch.rand(7)
    again, _ = curvature(model, given, seed=3).sampled_gradients(parameters)
    other, _ = curvature(model, given, seed=4).sampled_gradients(parameters)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    # the labels are the model's own: the true targets matter only for where they are
    shuffled = replace(given, targets=torch.where(given.targets == -100, -100, (given.targets + 1) % 50))
    same, _ = curvature(model, shuffled, seed=3).sampled_gradients(parameters)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))


class SquaredLogits:
    """An objective that gives no logits: the mean square of the model's own."""

    def count(self, batch: Batch) -> float:
        return batch.tokens

    def __call__(self, model: LanguageModel, batch: Batch, at: At) -> Loss:
        return Loss(model.read(batch.inputs).logits().square().mean(), {})


def test_curvature_is_that_of_the_runs_own_objective() -> None:
    model, given = make(), batch(True)
    parameters, vectors = list(model.parameters()), probe(model)
    found = curvature_of(SquaredLogits(), model, given, At(), device="cpu", precision="float32", seed=0)
    products = found.hessian_vector_products(parameters, vectors)
    with sdpa_kernel(SDPBackend.MATH):
        gradients = torch.autograd.grad(
            model.read(given.inputs).logits().square().mean(), parameters, create_graph=True
        )
    along = torch.stack([(g * v).sum() for g, v in zip(gradients, vectors, strict=True)]).sum()
    torch.testing.assert_close(products, list(torch.autograd.grad(along, parameters)))
    assert found.flops == 9 * model.cost(Shape(3, 24)).flops
    with pytest.raises(UsageError, match="SquaredLogits gives no logits"):
        found.sampled_gradients(parameters)


@pytest.mark.parametrize("attention", ["flash", "chunked"])
def test_compiled_blocks_and_bfloat16_give_second_derivatives(attention: str) -> None:
    given, plain, compiled = batch(False), make(), make()
    parameters, vectors = list(plain.parameters()), probe(plain)
    prepare_blocks(compiled, ExecutionConfig(attention=attention))  # type: ignore[arg-type]
    for block in compiled.blocks:
        block.compile(backend="aot_eager", dynamic=False)  # as inductor, it cannot be differentiated twice
    own = list(compiled.parameters())
    expected = curvature(plain, given).hessian_vector_products(parameters, vectors)
    found = curvature(compiled, given).hessian_vector_products(own, vectors)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    narrow = curvature(compiled, given, precision="bfloat16").hessian_vector_products(own, vectors)
    for rough, exact in zip(narrow, expected, strict=True):
        assert (rough - exact).norm() < 0.3 * exact.norm()
    gradients, _ = curvature(compiled, given).sampled_gradients(own)
    torch.testing.assert_close(
        gradients, curvature(plain, given).sampled_gradients(parameters)[0], rtol=1e-3, atol=1e-5
    )
