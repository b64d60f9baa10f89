"""The curvature of a transformer's batch, against torch's own derivatives and its counter of operations."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from shoestring.config import build
from shoestring.data.windows import Batch
from shoestring.model import ModelConfig, Transformer
from shoestring.train.config import ExecutionConfig
from shoestring.train.curvature import BatchCurvature
from shoestring.train.execution import prepare_blocks

SIZES = {"layers": 2, "width": 32, "heads": 4, "vocabulary": 50, "context": 24}
VARIANTS = {
    "tied": {},
    "untied, grouped": {"tied": False, "key_value_heads": 2},
    "squared ReLU": {"channel_mixer": "squared_relu"},
}
# torch's counter does not know the attention kernel of CPUs, which does the products of the GPUs' flash kernel
CPU_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *given, **_: sdpa_flop_count(*given[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *given, **_: sdpa_backward_flop_count(*given[:4])
    ),
}


def make(variant: str = "tied") -> Transformer:
    torch.manual_seed(1)
    model = build(ModelConfig, {**SIZES, **VARIANTS[variant]}).build()  # type: ignore[dict-item]
    with torch.no_grad():
        for parameter in model.parameters():  # away from its start, where every block gives zero
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model


def batch(packed: bool) -> Batch:
    torch.manual_seed(2)
    inputs, targets = torch.randint(50, (2, 3, 24))
    if not packed:
        return Batch(inputs, targets)
    places = torch.arange(24)
    targets[:, 7::8] = -100
    return Batch(inputs, targets, (places % 8).repeat(3, 1), (places // 8).repeat(3, 1))


def curvature(model: Transformer, given: Batch, **options: Any) -> BatchCurvature:
    return BatchCurvature(model, given, **{"device": "cpu", "precision": "float32", "seed": 0, **options})


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
        loss = F.cross_entropy(
            model(given.inputs, given.positions, given.documents).flatten(0, 1), given.targets.flatten()
        )
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


def test_the_first_rows_alone() -> None:
    model, given = make(), batch(True)
    parameters, vectors = list(model.parameters()), probe(model)
    two = Batch(*(tensor[:2] for tensor in (given.inputs, given.targets, given.positions, given.documents)))  # type: ignore[index]
    found = curvature(model, given, rows=2)
    expected = curvature(model, two)
    torch.testing.assert_close(
        found.hessian_vector_products(parameters, vectors), expected.hessian_vector_products(parameters, vectors)
    )
    assert found.sampled_gradients(parameters)[1] == two.tokens
    assert found.flops == curvature(model, given).product_flops * 2 // 3 + found.gradient_flops


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
