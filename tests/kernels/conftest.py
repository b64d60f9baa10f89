"""The kernel and the number of threads are as before after every test."""

from collections.abc import Iterator

import pytest
import torch

from shoestring import kernels


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    kernels.choose(None)
    torch.set_num_threads(threads)
