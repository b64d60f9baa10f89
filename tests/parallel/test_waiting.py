"""Whoever waits for a slow process in a collective is seen to wait, in `fully_shard`, in DTensor and in plain collectives."""

import json
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from shoestring.parallel.layout import ParallelLayout
from shoestring.parallel.sharding import shard
from shoestring.parallel.waiting import around_collectives
from tests.parallel.layout_models import native
from tests.parallel.layout_runs import batch, loss_of

SLEEP = 0.3


def waits(rank: int, port: int, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=100)
    )
    waited = 0.0

    @contextmanager
    def waiting() -> Iterator[None]:
        nonlocal waited
        began = time.monotonic()
        yield
        waited += time.monotonic() - began

    found: dict[str, list[float]] = {}
    for name, layout in (("fsdp", ParallelLayout(fsdp=2)), ("tensor", ParallelLayout(tensor=2))):
        model = native()
        sharded = shard(model, layout)
        late = model.get_submodule(next(iter(model.anatomy().layers)))  # asleep in its first layer
        late.register_forward_pre_hook(lambda *_: time.sleep(SLEEP * rank))
        loss_of(model, *batch(0)).backward()  # torch sets itself up
        found[name] = [0.0, 0.0]
        dist.barrier()
        waited, began = 0.0, time.monotonic()
        with around_collectives(waiting):
            loss_of(model, *batch(0)).backward()
            sharded.gradient_norm(2.0)
            found[name] = [waited, time.monotonic() - began - waited]
            other = threading.Thread(target=dist.barrier)
            other.start()
            other.join()
            assert waited == found[name][0], "another thread's collectives are its own"
    before = waited
    dist.barrier()
    assert waited == before, "it is over"
    (out / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_who_waits_is_told_from_who_works(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=waits, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    quick, late = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for layout in ("fsdp", "tensor"):
        # both take as long in all: one of them sleeps, and the other one waits for it
        assert quick[layout][0] > 0.8 * SLEEP, (layout, quick, late)
        assert late[layout][1] > 0.8 * SLEEP + quick[layout][1] / 2, (layout, quick, late)
