"""Two processes write checkpoints together: a full disk, a damaged file, and kill -9 while they write."""

import json
import multiprocessing
import os
import resource
import signal
import socket
import time
from datetime import timedelta
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from shoestring import atomic
from shoestring.config import Choice, build
from shoestring.errors import ShoestringError
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.optim.partition import partition
from shoestring.parallel.layout import ParallelLayout
from shoestring.train import checkpoint
from tests.train.command import LIMIT

SIZES = {"layers": 2, "width": 16, "heads": 2, "context": 8, "vocabulary": 32}


def writer(rank: int, port: int, folder: Path, told: Path) -> None:
    """Every weight is the number of the step. After what goes wrong, save until killed."""
    from shoestring.parallel.optimizer import ShardedOptimizer
    from shoestring.parallel.sharding import shard
    from shoestring.train import sharded_checkpoint

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=100)
    )
    model = Transformer(build(ModelConfig, SIZES))
    claimed = partition(model, Choice.of("optim", "muon", precision="float32"), Choice.of("optim", "adamw"))
    sharded = shard(model, ParallelLayout(fsdp=2))
    optimizer = ShardedOptimizer(sharded, claimed)
    said = []

    def save(step: int) -> None:
        for one in sharded.parameters.values():
            one.local().fill_(step)
        try:
            parts = sharded_checkpoint.parts_here(sharded, ()), optimizer.state_here()[0]
            sharded_checkpoint.save(folder, step, *parts, {"at": step}, keep=2)
        except ShoestringError as error:
            said.append(str(error))

    save(1)
    if rank == 1:  # as a disk that is full for this process alone
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
    save(2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    save(3)
    sharded_checkpoint.load(folder, None)
    dist.barrier()
    if rank == 0:
        damaged = folder / "step-00000003" / "model-00001.safetensors"
        content = bytearray(damaged.read_bytes())
        content[-1] ^= 1
        damaged.write_bytes(content)
    dist.barrier()
    try:
        sharded_checkpoint.load(folder, None)
    except ShoestringError as error:
        said.append(str(error))
    (told / f"{rank}.json").write_text(json.dumps(said))
    for step in range(4, 100_000):
        save(step)


def begun(folder: Path, told: Path) -> list[ForkProcess]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    context = multiprocessing.get_context("fork")  # torch is imported here already
    processes = [context.Process(target=writer, args=(rank, port, folder, told)) for rank in range(2)]
    for process in processes:
        process.start()
    return processes


@pytest.mark.parametrize("victim", [0, 1])
def test_a_full_disk_a_damaged_file_and_a_kill_leave_the_last_good_checkpoint(victim: int, tmp_path: Path) -> None:
    folder, end = tmp_path / "checkpoints", time.monotonic() + LIMIT
    processes = begun(folder, tmp_path)
    while len(checkpoint.list_checkpoints(folder)) < 2 or checkpoint.list_checkpoints(folder)[-1] < 6:
        assert time.monotonic() < end
        assert all(process.is_alive() for process in processes)
        time.sleep(0.003 * victim)
    os.kill(processes[victim].pid or 0, signal.SIGKILL)
    processes[1 - victim].kill()
    for process in processes:
        process.join()
    atomic.sweep(folder)
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]
    step, found = checkpoint.load(folder)
    assert step >= 6
    assert found.state["at"] == step
    model = Transformer(build(ModelConfig, SIZES))
    assert found.model.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(found.model[name], torch.full_like(weight, step)), name
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second  # all processes say the same
    full, damaged = first
    assert "checkpoint of step 2 not written" in full
    assert "File too large (process 1)" in full
    assert "the checkpoint of step 1 is kept" in full
    assert "model-00001.safetensors is damaged" in damaged
    assert "--from-step 1" in damaged
