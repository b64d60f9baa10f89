"""For packages whose matrices are tiny: one thread of torch, as threads that wait for each other on a busy machine take most
of the time, and a reference adds up in the order of a worker's one thread. A test of threads sets its own."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
