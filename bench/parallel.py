"""Peak memory of a process under [parallel] beside what `plan` predicts; and the losses of layouts beside those of one process.

Each layout trains a native model for a few steps in processes of its own (gloo, one thread each). Measured is by how much a
process's resident memory grows from before the model is made to its peak (VmHWM). The allocator's slack is in it: small models show
nothing. `--equal` prints the largest difference of any loss to one process's, for four processes too; with `--experts` of a model
that has some. About a minute a layout.
`--islands` counts what two workers of two processes send each other in an exchange, beside two workers of one process.
`--equal --place smollm2` does so for a model that exists, in two and four processes (tensor: three, as it has three key-value
heads): give few and short rows, `--batch 4 --context 8 --lr 1e-4`; a process takes 2 to 3 GB, with SOAP more. `--layouts`: how many
of fsdp, data, both and tensor.
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
from shoestring.base import open_model
from shoestring.budget.machine import probe
from shoestring.config import Choice, build
from shoestring.contract.batch import Batch, Inputs
from shoestring.launch.processes import launch
from shoestring.launch.request import SAMPLE
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.optim.partition import partition
from shoestring.parallel.layout import ParallelLayout
from shoestring.plan.means import Exchanged
from shoestring.plan.parallel_layouts import ModelSizes, Placement, StateBytes, memory_of
from shoestring.sync.diloco import DiLoCo
from shoestring.sync.exchange_bytes import exchange_bytes
from shoestring.sync.rendezvous.joining import join, leave
from shoestring.sync.transport.distributed import DistributedTransport
from shoestring.train.run_folder import environment

LAYOUTS = ({"fsdp": 2}, {"fsdp": 2, "checkpointing": "layers"}, {"fsdp": 4}, {"data": 2}, {"tensor": 2})
ISLANDS = 2
CODECS: dict[str, dict[str, Any]] = {"float32": {}, "bfloat16": {}, "linear": {"bits": 2}}
PATIENCE = 300.0
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Has the C library hand freed buffers back at once: what is measured is what is held."""


def resident(key: str) -> int:
    """Bytes of this process's resident memory: VmRSS now, VmHWM at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"{key} is not in /proc/self/status: this bench needs Linux")


def train(model: Any, asked: dict[str, Any], layout: ParallelLayout, tokens: torch.Tensor | None = None) -> list[float]:
    """The losses of a few steps in this process, one of the layout's.

    asked: 'optimizer', 'steps', 'batch', 'context', 'lr' where it is not the optimiser's own, and 'parts': of a batch, one after
    the other. tokens: of a text that rows are taken from; None: they are drawn at random.
    """
    from shoestring.parallel.context_parallel import part_of_rows
    from shoestring.parallel.optimizer import ShardedOptimizer
    from shoestring.parallel.sharding import shard

    options = asked.get("options") or ({"precision": "float32"} if asked["optimizer"] == "muon" else {})
    rate = {} if asked.get("lr") is None else {"lr": asked["lr"]}
    chosen = Choice.of("optim", asked["optimizer"], **options, **rate), Choice.of("optim", "adamw", **rate)
    claimed = partition(model, *chosen)
    sharded = shard(model, layout)
    stepper, losses, parts = ShardedOptimizer(sharded, claimed), [], asked.get("parts", 1)
    del claimed  # it holds the weights that were whole
    for step in range(asked["steps"]):
        generator, length = torch.Generator().manual_seed(step), asked["context"] + 1
        if tokens is None:
            ids = torch.randint(0, model.config.vocabulary, (asked["batch"], length), generator=generator)
        else:
            starts = torch.randint(0, len(tokens) - length, (asked["batch"],), generator=generator)
            ids = torch.stack([tokens[start : start + length] for start in starts.tolist()])
        rank, whole = dist.get_rank(), Batch(Inputs(ids[:, :-1]), ids[:, 1:])
        own = whole.split(whole.rows // layout.parts)[layout.part(rank)]
        if layout.context > 1:
            own = part_of_rows(own, layout.places(rank)["context"], layout.context)
        total = torch.zeros((), dtype=torch.float64)
        for part in own.split(-(-own.rows // parts)):
            reading = model.read(part.inputs)
            loss = F.cross_entropy(reading.logits().flatten(0, 1), part.targets.flatten())
            more = reading.auxiliary()
            loss = (loss if more is None else loss + more) / (layout.parts * layout.context * parts)
            del reading
            (loss * sharded.gradient_scale).backward()
            total += loss.detach()
        sharded.reduce_gradients()
        sharded.clip_gradients(1.0)
        stepper.step()
        stepper.zero_grad()
        dist.all_reduce(total)
        losses.append(float(total) / layout.tensor)
    return losses


def work(asked: dict[str, Any]) -> None:
    """One process of a layout: what it found goes to a file of its own."""
    torch.set_num_threads(1)
    transport = join(PATIENCE)
    config, layout = build(ModelConfig, asked["model"]), build(ParallelLayout, asked["layout"])
    # what the engines take themselves is not the model's: a tiny one first
    tiny = {**asked["model"], "width": 32, "heads": 2 * layout.tensor, "hidden": 64 * layout.tensor, "layers": 1}
    warm = {"optimizer": "adamw", "steps": 1, "batch": 8, "context": config.context}
    train(Transformer(build(ModelConfig, {**tiny, "width": 16 * tiny["heads"]})), warm, layout)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    torch.manual_seed(0)
    if asked.get("place"):
        opened = open_model(asked["place"], torch.float32)
        model: Any = opened.model
        model.requires_grad_(True).train()
        assert opened.tokenizer is not None
        tokens = torch.tensor(opened.tokenizer.encode(Path(__file__).read_text(encoding="utf-8")))
    else:
        model, tokens = Transformer(config), None
    if asked.get("double"):
        model.double()
    losses = train(model, {**asked, "context": config.context}, layout, tokens)
    found = {"losses": losses, "grown": resident("VmHWM") - before}
    atomic.write_text(Path(asked["out"]) / f"{transport.rank}.json", json.dumps(found))
    leave(transport)


def codec_of(name: str) -> Choice:
    """A codec of the table."""
    return Choice.of("sync", name, kind="codec", **CODECS[name])


def work_in_island(asked: dict[str, Any]) -> None:
    """One process of one of two workers: bytes of an exchange with each codec, counted and predicted."""
    from shoestring.parallel.island import IslandDiLoCo, IslandPart
    from shoestring.parallel.optimizer import ShardedOptimizer
    from shoestring.parallel.sharding import shard

    torch.set_num_threads(1)
    layout, config = build(ParallelLayout, asked["layout"]), build(ModelConfig, asked["model"])
    each = layout.processes
    everybody = join(PATIENCE, island=each if each > 1 else None)
    assert isinstance(everybody, DistributedTransport)
    island, place = divmod(everybody.rank, each)
    found: dict[str, dict[str, int]] = {}
    for codec in CODECS:
        torch.manual_seed(0)
        model = Transformer(config)
        claimed = partition(model, Choice.of("optim", "adamw"), Choice.of("optim", "adamw"))
        loop = Choice.of("sync", "diloco", kind="outer loop", every=1, codec=codec_of(codec)).build()
        links, part = everybody.among(range(place, everybody.size, each)), None
        if each == 1:
            outer: DiLoCo = loop.attach(model, claimed.build(), links, roles={})
            shapes = [parameter.shape for _, parameter in outer.fragments[0]]
            predicted = exchange_bytes(shapes, outer.codec, rank=island, workers=ISLANDS)
        else:
            sharded = shard(model, layout)
            optimizer = ShardedOptimizer(sharded, claimed)
            part = IslandPart(sharded, optimizer)
            islander: IslandDiLoCo = loop.attach(part, optimizer, links, roles={}, kind=IslandDiLoCo)
            predicted, outer = islander.predicted_bytes(0), islander
        outer.step()  # the settings check is before the first
        before = links.traffic.sent
        if part is not None:
            part.received()
        outer.step()
        found[codec] = {"predicted": predicted, "sent": links.traffic.sent - before}
        found[codec]["within"] = 0 if part is None else part.received()
        found[codec]["predicted_within"] = 0 if part is None else part.bytes_within(part.names)
    atomic.write_text(Path(asked["out"]) / f"{everybody.rank}.json", json.dumps(found))
    leave(everybody)


def islands(shape: dict[str, int]) -> list[dict[str, Any]]:
    """Print and return what an exchange of two workers sends, by codec and by how a worker is divided."""
    rows, count = [], sum(p.numel() for p in Transformer(build(ModelConfig, shape)).parameters())
    for given in ({}, {"fsdp": 2}, {"tensor": 2}):
        processes = run({"model": shape, "layout": given, "islands": ISLANDS})
        each = len(processes) // ISLANDS
        for codec in CODECS:
            found = [process[codec] for process in processes]
            bits = 8 * codec_of(codec).build().payload_bytes(SAMPLE) / (SAMPLE[0] * SAMPLE[1])
            row = {
                "codec": codec,
                "layout": given,
                "planned": Exchanged(1, bits, ISLANDS).bytes_of_round(count),
                "predicted": sum(one["predicted"] for one in found[::each]),
                "sent": sum(one["sent"] for one in found),
                "by_one_process": max(one["sent"] for one in found),
                "predicted_within": max(one["predicted_within"] for one in found),
                "within": max(one["within"] for one in found),
            }
            rows.append(row)
            print(
                "  ".join(
                    f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in row.items()
                )
            )
    return rows


def run(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """What each process of a layout found."""
    layout = build(ParallelLayout, asked["layout"])
    with tempfile.TemporaryDirectory() as scratch:
        words = [sys.executable, __file__, "--worker", json.dumps({**asked, "out": scratch})]
        count = layout.processes * asked.get("islands", 1)
        with launch(words, count, outputs=Path(scratch) / "outputs", environment=RETURNED) as team:
            team.wait()
        return [json.loads((Path(scratch) / f"{rank}.json").read_text()) for rank in range(count)]


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--steps", type=int, help="default 3, with --equal 20")
    parser.add_argument("--batch", type=int, default=8, help="rows of a step, with --equal")
    parser.add_argument("--lr", type=float, help="learning rate, with --equal (default: each optimiser's own)")
    parser.add_argument("--tensor", type=int, default=3, help="processes that divide the heads of --place")
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "muon"])
    parser.add_argument("--layouts", type=int, help="the first so many")
    parser.add_argument(
        "--equal", action="store_true", help="losses of two and four processes against one, for 20 steps"
    )
    parser.add_argument("--islands", action="store_true", help="bytes between two workers of two processes each")
    parser.add_argument(
        "--double", action="store_true", help="with --equal: in float64, which tells what is rounded from what is wrong"
    )
    parser.add_argument("--max-side", type=int, help="of SOAP, with --equal: longer sides have no basis")
    parser.add_argument("--experts", type=int, default=0, metavar="N", help="of a layer, for --equal")
    parser.add_argument("--smallest", action="store_true", help="as small as it can be: whether it runs")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--place", default="", help="with --equal: a model that exists, as open_model takes it")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.worker:
        asked = json.loads(options.worker)
        (work_in_island if "islands" in asked else work)(asked)
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
    if options.islands:
        rows = islands(shape)
        if options.json:
            atomic.write_text(
                options.json, json.dumps({"shape": shape, "rows": rows, "environment": environment(probe())})
            )
        return int(any(row["sent"] != row["predicted"] for row in rows))
    if options.equal:
        layouts: tuple[dict[str, Any], ...] = OF_EXPERTS if options.experts else (*LAYOUTS[:2], *LAYOUTS[3:], *PRODUCTS)
        if options.place:
            layouts = ({"fsdp": 2}, {"data": 2}, {"data": 2, "fsdp": 2}, {"tensor": options.tensor})
        return equal(shape, options, layouts[: options.layouts])
    sizes, rows = ModelSizes.of(build(ModelConfig, shape)), []
    for optimizer in options.optimizers:
        for given in LAYOUTS[: options.layouts]:
            layout = build(ParallelLayout, given)
            batch = 4 * layout.parts
            found = run(
                {"model": shape, "layout": given, "optimizer": optimizer, "steps": options.steps or 3, "batch": batch}
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


PRODUCTS: tuple[dict[str, Any], ...] = (
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
OF_EXPERTS: tuple[dict[str, Any], ...] = (
    {"data": 2, "expert": 2},
    {"data": 4, "expert": 2},
    {"data": 2, "fsdp": 2, "expert": 4},
    {"data": 2, "tensor": 2, "expert": 2},
    {"data": 2, "context": 2, "expert": 2},
)


def equal(shape: dict[str, Any], options: argparse.Namespace, layouts: Sequence[dict[str, Any]]) -> int:
    """Print the largest difference of a loss. Returns 1 where one is above 1e-5."""
    worst, rows = 0.0, []
    for optimizer in options.optimizers:
        asked = {"model": shape, "optimizer": optimizer, "place": options.place, "batch": options.batch}
        asked |= {"steps": options.steps or 20, "lr": options.lr, "double": options.double}
        if optimizer == "soap" and options.max_side is not None:
            asked["options"] = {"max_side": options.max_side}
        alone: dict[int, list[float]] = {}  # by parts
        for given in layouts:
            # a model that exists is compared with one process that sums a batch's parts in the same order
            parts = build(ParallelLayout, given).parts if options.place else 1
            if parts not in alone:
                alone[parts] = run({**asked, "layout": {}, "parts": parts})[0]["losses"]
            one, losses = alone[parts], run({**asked, "layout": given})[0]["losses"]
            apart = max(abs(a - b) for a, b in zip(one, losses, strict=True))
            worst = max(worst, apart)
            rows.append({"optimizer": optimizer, "layout": given, "apart": apart, "losses": losses, "one": one})
            print(f"{optimizer:6} {given!s:45} {apart:.1e}  ({one[0]:.3f} to {one[-1]:.3f} nats)", flush=True)
            if options.json:
                about = {"place": options.place, "shape": shape, "steps": asked["steps"], "batch": options.batch}
                whole = {
                    **about,
                    "lr": options.lr,
                    "double": options.double,
                    "rows": rows,
                    "environment": environment(probe()),
                }
                atomic.write_text(options.json, json.dumps(whole, indent=1))
    return int(worst > 1e-5)


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    sys.exit(main(sys.argv[1:]))
