"""Peak memory of a process under [parallel] beside what `plan` predicts; and the losses of layouts beside those of one process.

Each layout trains a native model for a few steps in processes of its own (gloo, one thread each). Measured is by how much a
process's resident memory grows from before the model is made to its peak (VmHWM). The allocator's slack is in it: small models show
nothing. `--equal` prints the largest difference of any loss to one process's, for four processes too; with `--experts` of a model
that has some. About a minute a layout.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F

from shoestring import atomic
from shoestring.budget.machine import probe
from shoestring.config import Choice, build
from shoestring.contract.batch import Batch, Inputs
from shoestring.launch.processes import launch
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.optim.partition import partition
from shoestring.parallel.layout import ParallelLayout
from shoestring.plan.parallel_layouts import ModelSizes, Placement, StateBytes, memory_of
from shoestring.sync.rendezvous.joining import join, leave
from shoestring.train.run_folder import environment

LAYOUTS = ({"fsdp": 2}, {"fsdp": 2, "checkpointing": "layers"}, {"fsdp": 4}, {"data": 2}, {"tensor": 2})
PATIENCE = 300.0
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Has the C library hand freed buffers back at once: what is measured is what is held."""


def resident(key: str) -> int:
    """Bytes of this process's resident memory: VmRSS now, VmHWM at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"{key} is not in /proc/self/status: this bench needs Linux")


def train(model: Any, optimizer: str, layout: ParallelLayout, steps: int, batch: int) -> list[float]:
    """The losses of a few steps in this process, one of the layout's."""
    from shoestring.parallel.context_parallel import part_of_rows
    from shoestring.parallel.optimizer import ShardedOptimizer
    from shoestring.parallel.sharding import shard

    options = {"precision": "float32"} if optimizer == "muon" else {}
    claimed = partition(model, Choice.of("optim", optimizer, **options), Choice.of("optim", "adamw"))
    sharded = shard(model, layout)
    stepper, losses, config = ShardedOptimizer(sharded, claimed), [], model.config
    del claimed  # it holds the weights that were whole
    for step in range(steps):
        size = (batch, config.context + 1)
        ids = torch.randint(0, config.vocabulary, size, generator=torch.Generator().manual_seed(step))
        rank, whole = dist.get_rank(), Batch(Inputs(ids[:, :-1]), ids[:, 1:])
        own = whole.split(batch // layout.parts)[layout.part(rank)]
        if layout.context > 1:
            own = part_of_rows(own, layout.place(rank), layout.context)
        reading = model.read(own.inputs)
        loss = F.cross_entropy(reading.logits().flatten(0, 1), own.targets.flatten())
        more = reading.auxiliary()
        loss = (loss if more is None else loss + more) / (layout.parts * layout.context)
        del reading
        (loss * sharded.gradient_scale).backward()
        sharded.reduce_gradients()
        sharded.clip_gradients(1.0)
        stepper.step()
        stepper.zero_grad()
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(float(total) / layout.tensor)
    return losses


def work(asked: dict[str, Any]) -> None:
    """One process of a layout: what it found goes to a file of its own."""
    torch.set_num_threads(1)
    transport = join(PATIENCE)
    config, layout = build(ModelConfig, asked["model"]), build(ParallelLayout, asked["layout"])
    # what the engines take themselves is not the model's: a tiny one first
    train(
        Transformer(build(ModelConfig, {**asked["model"], "width": 32, "heads": 2, "layers": 1})), "adamw", layout, 1, 8
    )
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    torch.manual_seed(0)
    losses = train(Transformer(config), asked["optimizer"], layout, asked["steps"], asked["batch"])
    found = {"losses": losses, "grown": resident("VmHWM") - before}
    atomic.write_text(Path(asked["out"]) / f"{transport.rank}.json", json.dumps(found))
    leave(transport)


def run(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """What each process of a layout found."""
    layout = build(ParallelLayout, asked["layout"])
    with tempfile.TemporaryDirectory() as scratch:
        words = [sys.executable, __file__, "--worker", json.dumps({**asked, "out": scratch})]
        with launch(words, layout.processes, outputs=Path(scratch) / "outputs", environment=RETURNED) as team:
            team.wait()
        return [json.loads((Path(scratch) / f"{rank}.json").read_text()) for rank in range(layout.processes)]


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "muon"])
    parser.add_argument("--layouts", type=int, default=len(LAYOUTS), help="the first so many")
    parser.add_argument(
        "--equal", action="store_true", help="losses of two and four processes against one, for 20 steps"
    )
    parser.add_argument("--experts", type=int, default=0, metavar="N", help="of a layer, for --equal")
    parser.add_argument("--smallest", action="store_true", help="as small as it can be: whether it runs")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.worker:
        work(json.loads(options.worker))
        return 0
    if options.smallest:
        options.layers, options.width, options.context, options.optimizers, options.layouts = 1, 64, 16, ["adamw"], 1
    shape: dict[str, Any] = {
        "layers": options.layers,
        "width": options.width,
        "heads": options.width // 32,
        "context": options.context,
    }
    shape["vocabulary"] = 1024
    if options.experts:
        # a balance is of a process's rows, and would differ
        router = {"name": "token_choice", "balance": 0.0}
        shape["channel_mixer"] = {"name": "moe", "experts": options.experts, "router": router}
    if options.equal:
        return equal(shape, options.optimizers)
    sizes, rows = ModelSizes.of(build(ModelConfig, shape)), []
    for optimizer in options.optimizers:
        for given in LAYOUTS[: options.layouts]:
            layout = build(ParallelLayout, given)
            batch = 4 * layout.parts
            found = run(
                {"model": shape, "layout": given, "optimizer": optimizer, "steps": options.steps, "batch": batch}
            )
            # Muon: a momentum, and where matrices are divided its owner's copy of the weights
            if optimizer == "adamw":
                state = StateBytes(optimizer=8)
            else:
                divided = layout.fsdp * layout.tensor > 1
                state = StateBytes(optimizer=8 if divided else 4, divided=divided)
            predicted = memory_of(sizes, Placement(layout, 4), state, 1, value=4)
            grown = max(each["grown"] for each in found)
            rows.append({"optimizer": optimizer, "layout": given, "predicted": predicted, "measured": grown})
            print(
                f"{optimizer:6} {given!s:45} predicted {predicted / 1e6:8.1f} MB  measured {grown / 1e6:8.1f} MB  "
                f"{grown / predicted:5.2f}",
                flush=True,
            )
    if options.json:
        atomic.write_text(
            options.json, json.dumps({"shape": shape, "rows": rows, "environment": environment(probe())}, indent=1)
        )
    return 0


OF_EXPERTS = (
    {"data": 2, "expert": 2},
    {"data": 4, "expert": 2},
    {"data": 2, "fsdp": 2, "expert": 4},
    {"data": 2, "tensor": 2, "expert": 2},
    {"data": 2, "context": 2, "expert": 2},
)


def equal(shape: dict[str, Any], optimizers: Sequence[str]) -> int:
    """Print the largest difference of a loss. Returns 1 where one is above 1e-5."""
    four: tuple[dict[str, Any], ...] = (
        *LAYOUTS[:2],
        *LAYOUTS[3:],
        {"data": 2, "fsdp": 2},
        {"fsdp": 2, "tensor": 2},
        {"data": 2, "tensor": 2},
        {"fsdp": 4},
        {"context": 2},
        {"context": 4},
        {"data": 2, "context": 2},
        {"fsdp": 2, "context": 2},
        {"context": 2, "tensor": 2},
    )
    worst = 0.0
    for optimizer in optimizers:
        asked = {"model": shape, "optimizer": optimizer, "steps": 20, "batch": 8}
        one = run({**asked, "layout": {}})[0]["losses"]
        for given in OF_EXPERTS if "channel_mixer" in shape else four:
            losses = run({**asked, "layout": given})[0]["losses"]
            apart = max(abs(a - b) for a, b in zip(one, losses, strict=True))
            worst = max(worst, apart)
            print(f"{optimizer:6} {given!s:45} {apart:.1e}", flush=True)
    return int(worst > 1e-5)


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    sys.exit(main(sys.argv[1:]))
