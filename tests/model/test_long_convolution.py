"""Long convolutions in either way against sums written out."""

import pytest
import torch

from shoestring.errors import UsageError
from shoestring.model.long_convolution import Way, fastest, long_convolution, monarch_sizes


@pytest.mark.parametrize("by", ["fft", "monarch"])
@pytest.mark.parametrize(("length", "taps"), [(1, 1), (5, 9), (37, 4), (64, 64)])
def test_convolutions_and_their_gradients_are_the_sums(by: Way, length: int, taps: int) -> None:
    torch.manual_seed(length)
    u = torch.randn(2, 3, length, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(3, taps, dtype=torch.float64, requires_grad=True)
    wanted = torch.stack(
        [sum((kernel[:, j] * u[..., t - j] for j in range(min(taps, t + 1))), torch.zeros(())) for t in range(length)],
        -1,
    )
    found = long_convolution(u, kernel, by)
    torch.testing.assert_close(found, wanted)
    weight = torch.randn_like(wanted)
    for one, other in zip(
        *(torch.autograd.grad((y * weight).sum(), (u, kernel)) for y in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("length", [20, 24])
def test_frequencies_that_are_left_out_are_those_of_a_masked_spectrum(length: int) -> None:
    torch.manual_seed(0)
    u, kernel = torch.randn(1, 2, length, dtype=torch.float64), torch.randn(2, length, dtype=torch.float64)
    n1, n2 = monarch_sizes(2 * length - 1)
    numbers = torch.arange(n1 * n2)
    columns = numbers // n1
    kept = (columns < 2) | (columns >= n2 - 2)
    mirrors = kept[-numbers % (n1 * n2)]  # a real text's other half
    spectrum = torch.fft.fft(kernel, n1 * n2) * torch.where(numbers % n1 <= n1 // 2, kept, mirrors)
    wanted = torch.fft.ifft(torch.fft.fft(u, n1 * n2) * spectrum)[..., :length].real
    found = long_convolution(u, kernel, "monarch", 4 / n2)
    torch.testing.assert_close(found, wanted)
    with pytest.raises(UsageError, match="convolve by 'monarch'"):
        long_convolution(u, kernel, "fft", 0.5)


def test_the_fastest_way_is_one_of_them() -> None:
    assert fastest(1, 2, 8, 4, torch.float32, "cpu") in ("fft", "monarch")
