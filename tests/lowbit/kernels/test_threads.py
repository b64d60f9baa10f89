"""The threads of the native library: several callers at once, a forked child, work that outnumbers them."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from shoestring.kernels import native
from shoestring.lowbit import kernels
from shoestring.lowbit.packing import pack

pytestmark = pytest.mark.skipif(not native.LIBRARY.exists(), reason="the native library was not built")

ROWS, COLUMNS = 400, 1000


def matrix(seed: int) -> tuple[torch.Tensor, torch.Tensor, int, int, str]:
    chance = torch.Generator().manual_seed(seed)
    codes = torch.randint(-1, 2, (ROWS, COLUMNS), dtype=torch.int8, generator=chance)
    return pack(codes, "ternary2"), torch.rand(ROWS, 1, generator=chance), ROWS, COLUMNS, "ternary2"


@pytest.fixture(params=[True, False], ids=["torch's threads", "own threads"])
def lent(request: pytest.FixtureRequest) -> Iterator[bool]:
    found = native.library()
    assert isinstance(found, native.Library)
    yield found.borrow_threads(request.param)
    found.borrow_threads(True)


def test_torch_lends_its_threads_where_it_has_them(lent: bool, request: pytest.FixtureRequest) -> None:
    has = bool(list((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")))
    assert lent == (has and "torch's" in request.node.name)


def test_callers_at_once_get_their_own_answers(lent: bool) -> None:
    torch.set_num_threads(3)
    work = [(torch.randn(tokens, COLUMNS), matrix(seed)) for seed, tokens in enumerate((1, 2, 1, 9, 1, 40))]
    alone = [kernels.matmul(x, *weights) for x, weights in work]

    def again(number: int) -> bool:
        torch.set_num_threads(3)
        x, weights = work[number % len(work)]
        return torch.equal(kernels.matmul(x, *weights), alone[number % len(work)])

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(again, range(600)))


def outcome(child: int) -> int:
    """The exit status of a child, which is killed where it hangs."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_and_its_child_have_threads_of_their_own(lent: bool) -> None:
    torch.set_num_threads(3)
    x, weights = torch.randn(1, COLUMNS), matrix(0)
    before = kernels.matmul(x, *weights)

    def same() -> bool:
        return all(torch.equal(kernels.matmul(x, *weights), before) for _ in range(50))

    child = os.fork()
    if child == 0:
        status = 1
        try:
            alike, grandchild = same(), os.fork()
            status = 0 if alike and ((grandchild == 0 and same()) or (grandchild and outcome(grandchild) == 0)) else 1
        finally:
            os._exit(status)
    assert outcome(child) == 0
    assert same()
