"""All kernels on the same arguments, in several numbers of threads, and whether they agree to the bit."""

from collections.abc import Callable

import torch
from torch import Tensor

from shoestring.lowbit import kernels

THREADS = (1, 2, 3)


def bits(values: Tensor) -> Tensor:
    """The bits of float32 numbers; all NaNs count as one."""
    return torch.where(values.isnan(), torch.nan, values).view(torch.int32)


def agreed(product: Callable[[], Tensor]) -> Tensor:
    """What every kernel here finds. Fails where one finds something else."""
    kernels.choose("torch")
    reference = product()
    for kernel in kernels.available()[1:]:
        kernels.choose(kernel)
        for threads in THREADS:
            torch.set_num_threads(threads)
            found = product()
            assert found.shape == reference.shape
            assert torch.equal(bits(found), bits(reference)), f"{kernel} in {threads} threads differs from torch"
    return reference
