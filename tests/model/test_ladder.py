"""A ladder of layers: its formula, its partial conversion, and sums over processes that pass beside the next part."""

import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from shoestring.config import Choice, build
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.edit import Evidence
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.surgery.observe import Walk


def model(ladder: str) -> Transformer:
    torch.manual_seed(1)
    sizes = {"layers": 4, "width": 16, "heads": 2, "vocabulary": 30, "context": 12}
    pattern = [{"at": ladder, "residual": "ladder"}] if ladder else []
    made = Transformer(build(ModelConfig, {**sizes, "pattern": pattern})).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=parameter.shape[1] ** -0.5)
    return made


def reference(made: Transformer, text: Tensor, ladder: set[int]) -> Tensor:
    """x_i = x_(i-1) + f_i(x_(i-2)), a part after the other; other layers read all."""
    cos, sin = made.rotary(0, text.shape[1], None)
    streams = [made.embedding(text)]
    for number, block in enumerate(made.blocks):
        part: Any = block
        for channels in (False, True):
            behind = number in ladder and (channels or number - 1 in ladder)
            seen = streams[-2] if behind and len(streams) > 1 else streams[-1]
            normed = part.channel_norm(seen) if channels else part.token_norm(seen)
            said = part.channel_mixer(normed) if channels else part.token_mixer(normed, cos, sin)
            streams.append(streams[-1] + said)
    return made.norm(streams[-1])


@pytest.mark.parametrize(("at", "layers"), [(":", {0, 1, 2, 3}), ("2:", {2, 3}), ("1, 3", {1, 3})])
def test_each_part_reads_the_stream_before_the_part_in_front(at: str, layers: set[int]) -> None:
    text = torch.randint(30, (2, 9))
    with torch.no_grad():
        made = model(at)
        wanted = reference(made, text, layers)
        torch.testing.assert_close(made.read(Inputs(text)).hidden, wanted)
        tapped = made.read(Inputs(text), tap=["blocks.3"]).tapped["blocks.3"]
        torch.testing.assert_close(made.norm(tapped), wanted)
        plain = model("")
        edit = Choice.of("surgery", "ladder", kind="edit", at=at).build()
        torch.testing.assert_close(edit.apply(plain, edit.decide(plain, Evidence())).read(Inputs(text)).hidden, wanted)
    with pytest.raises(UsageError, match="has the residual ladder, not pre_norm"):
        edit.apply(plain, edit.decide(plain, Evidence()))
    with pytest.raises(UsageError, match="cannot be walked"):
        Walk(plain, (Batch(Inputs(text), text),))


def on_the_way(made: nn.Module, text: Tensor) -> tuple[Tensor, list[int]]:
    """(what the model makes of a text, how many sums over processes nobody had waited for as each part began)."""
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    sent, waited, seen = [0], [0], list[int]()
    wait = AsyncCollectiveTensor.trigger_wait

    def noted(tensor: AsyncCollectiveTensor) -> Any:
        waited[0] += not tensor.completed
        return wait(tensor)

    def begin(*_: object) -> None:
        seen.append(sent[0] - waited[0])

    def end(*given: Any) -> None:
        sent[0] += isinstance(given[2], AsyncCollectiveTensor)

    for block in made.blocks:  # type: ignore[union-attr]
        for part in (block.token_mixer, block.channel_mixer):
            part.register_forward_pre_hook(begin)
            part.register_forward_hook(end)
    AsyncCollectiveTensor.trigger_wait = noted  # type: ignore[method-assign]
    try:
        with torch.no_grad():
            return made.read(Inputs(text)).hidden, seen  # type: ignore[operator]
    finally:
        AsyncCollectiveTensor.trigger_wait = wait  # type: ignore[method-assign]


def divided(rank: int, port: int, text: Tensor, wanted: Tensor, out: Path) -> None:
    """In each of two processes: a pass with heads and hidden features divided."""
    from shoestring.parallel.layout import ParallelLayout
    from shoestring.parallel.sharding import shard

    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    said = {}
    for ladder in ("", ":"):
        made = shard(model(ladder), ParallelLayout(tensor=2)).model
        found, said[ladder] = on_the_way(made, text)
        if ladder:
            torch.testing.assert_close(found, wanted)
    if rank == 0:
        out.write_text(json.dumps(said))
    dist.destroy_process_group()


def test_sums_over_processes_pass_beside_the_next_part(tmp_path: Path) -> None:
    text = torch.randint(30, (2, 9))
    with torch.no_grad():
        wanted = model(":").read(Inputs(text)).hidden
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # torch is imported here already
    args = [(rank, port, text, wanted, tmp_path / "said") for rank in range(2)]
    crew = [context.Process(target=divided, args=one) for one in args]
    for process in crew:
        process.start()
    for process in crew:
        process.join(120)
    assert [process.exitcode for process in crew] == [0, 0]
    said = json.loads((tmp_path / "said").read_text())
    assert said[""] == [0] * 8  # each part waits for the sum of the part before it
    assert said[":"] == [0] + [1] * 7
