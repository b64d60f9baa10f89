"""The products as operators of torch: shapes without data, tracing, compiling, and no silent loss of a gradient."""

import pytest
import torch

from shoestring.errors import ShoestringError
from shoestring.lowbit import kernels
from shoestring.lowbit.packing import integer, pack


def arguments(tokens: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int, str]:
    chance = torch.Generator().manual_seed(0)
    codes = torch.randint(-1, 2, (40, 60), dtype=torch.int8, generator=chance)
    return (
        torch.randn(tokens, 60, generator=chance),
        pack(codes, "ternary1.6"),
        torch.rand(40, 1, generator=chance),
        40,
        60,
        "ternary1.6",
    )


def test_torch_accepts_the_operators() -> None:
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.shoestring.ternary_matmul.default, arguments(), test_utils=tests)
    x, weights, scales = torch.randn(2, 50), torch.randint(-8, 8, (7, 50), dtype=torch.int8), torch.rand(7, 1)
    for bits, matrix in ((8, weights), (4, integer.pack(weights))):
        given = (x, matrix, scales, 7, 50, bits)
        torch.library.opcheck(torch.ops.shoestring.integer_matmul.default, given, test_utils=tests)


def test_the_operator_is_the_function() -> None:
    given = arguments()
    assert torch.equal(torch.ops.shoestring.ternary_matmul(*given), kernels.matmul(*given))


def test_a_trace_has_one_node_and_any_number_of_tokens() -> None:
    x, *rest = arguments()

    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return kernels.matmul(x.relu(), *rest)  # type: ignore[arg-type]

    tokens = torch.export.Dim("tokens", min=1, max=64)
    traced = torch.export.export(Layer(), (x,), dynamic_shapes={"x": {0: tokens}})
    calls = [node for node in traced.graph.nodes if "ternary_matmul" in str(node.target)]
    assert len(calls) == 1
    other = arguments(tokens=9)[0]
    assert torch.equal(traced.module()(other), kernels.matmul(other.relu(), *rest))  # type: ignore[arg-type]


def test_backward_says_that_there_is_no_gradient() -> None:
    x, *rest = arguments()
    found = kernels.matmul(x.requires_grad_(), *rest)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        found.sum().backward()
    with torch.no_grad():
        assert torch.equal(kernels.matmul(x, *rest), found)  # type: ignore[arg-type]


@pytest.mark.parametrize("gradient", [False, True], ids=["straight", "through torch"])
@pytest.mark.parametrize(("place", "name"), [(1, "a packed matrix"), (2, "scales")])
def test_tensors_on_two_devices_are_refused(place: int, name: str, gradient: bool) -> None:
    """A kernel would read the address of another device's memory; torch alone would return memory that nobody wrote."""
    x, weights, scales = torch.randn(2, 50), torch.randint(-8, 8, (7, 50), dtype=torch.int8), torch.rand(7, 1)
    products = (
        (kernels.matmul, arguments()),
        (kernels.int_matmul, (x, weights, scales, 7, 50, 8)),
        (kernels.int_matmul, (x, integer.pack(weights), scales, 7, 50, 4)),
    )
    for product, given in products:
        moved = list(given)
        moved[0], moved[place] = given[0].clone().requires_grad_(gradient), given[place].to("meta")  # type: ignore[union-attr]
        with pytest.raises(ShoestringError, match=f"activations on cpu cannot be multiplied with {name} on meta"):
            product(*moved)  # type: ignore[arg-type]
