"""Checkpoints that several processes write together: each its own part of weights and optimiser state, and none has the whole.

A process writes model-00000.safetensors and optimizer-00000.safetensors, numbered by its rank. What two processes have alike is
written by one of them. Rank 0 writes manifest.json when all others are done: for each tensor its type, its whole shape and which
file has which part, and the SHA-256 of every file. Then it renames the folder into place. Between processes travels JSON alone.
"""

import os
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch.distributed as dist

from shoestring import atomic
from shoestring.errors import ShoestringError, UsageError
from shoestring.model.safetensors_writer import TYPES, write_all
from shoestring.parallel.json_gather import gather_json
from shoestring.parallel.region import Part, as_whole
from shoestring.parallel.sharding import Sharded
from shoestring.train import checkpoint


def parts_here(sharded: Sharded, left_out: Collection[str]) -> dict[str, Part]:
    """The weights that this process is to keep. left_out: names of those that no checkpoint holds."""
    sharded.reshard()
    found = {
        name: (one.local(), tuple(one.shape), one.region)
        for name, one in sharded.parameters.items()
        if name in sharded.written_here and name not in left_out
    }
    if sharded.rank == 0:
        for name, buffer in sharded.buffers().items():
            if name not in left_out:
                found[name] = as_whole(buffer)
    return found


def save(
    folder: Path,
    step: int,
    model: Mapping[str, Part],
    optimizer: Mapping[str, Part],
    state: Mapping[str, Any],
    *,
    keep: int,
    spared: Collection[int] = (),
) -> None:
    """Write the checkpoint of `step`, as `checkpoint.save` does. All processes call it together.

    folder: one for all, which each can write in.
    model, optimizer: what this process is to keep of a `Snapshot`'s tensors. state: as one has it, rank 0's counts.
    Raises: ShoestringError in every process where any of them cannot write; the earlier checkpoints stand.
    """
    own = [part[0] for parts in (model, optimizer) for part in parts.values()]
    rank, size = dist.get_rank(), sum(gather_json(sum(tensor.numel() * tensor.element_size() for tensor in own)))
    target, leads = folder / f"step-{step:08d}", rank == 0
    with ExitStack() as stack:
        building, wrong = "", ""
        if leads and not target.exists():
            try:
                building = str(stack.enter_context(atomic.directory(target)))
            except OSError as error:
                wrong = error.strerror or str(error)
        building, wrong = gather_json([building, wrong])[0]
        if wrong:
            raise checkpoint.not_written(folder, step, wrong, size)
        if not building:
            return  # it is there already
        written = gather_json(_written(Path(building), rank, {"model": model, "optimizer": optimizer}))
        wrong = next(
            (f"{each['wrong']} (process {number})" for number, each in enumerate(written) if each["wrong"]), ""
        )
        if wrong:
            raise checkpoint.not_written(folder, step, wrong, size)
        if leads:
            wrong = _committed(stack, Path(building), step, state, written)
        (wrong, *_) = gather_json(wrong)
        if wrong:
            raise checkpoint.not_written(folder, step, wrong, size)
    if leads:
        checkpoint.drop_old(folder, keep, spared)


def _committed(
    stack: ExitStack, building: Path, step: int, state: Mapping[str, Any], written: list[dict[str, Any]]
) -> str:
    """Write the manifest and put the folder in its place. Returns what went wrong."""
    index: dict[str, Any] = {name: {} for name in checkpoint.TENSORS}
    for each in written:
        for kind, tensors in each["tensors"].items():
            for name, one in tensors.items():
                known = index[kind].setdefault(name, {"dtype": one["dtype"], "shape": one["shape"], "in": []})
                known["in"] += one["in"]
    digests = {name: digest for each in written for name, digest in each["sha256"].items()}
    try:
        checkpoint.finish(building, step, state, digests, {"version": checkpoint.SHARDED, **index})
        stack.close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _written(building: Path, rank: int, kinds: Mapping[str, Mapping[str, Part]]) -> dict[str, Any]:
    """Write the files of this process. Returns, as JSON values, what is in them, or what went wrong."""
    digests, tensors = dict[str, str](), dict[str, Any]()
    for kind, parts in kinds.items():
        file = building / f"{kind}-{rank:05d}.safetensors"
        there = {name: tensor for name, (tensor, _, _) in parts.items() if tensor.numel()}
        tensors[kind] = {
            name: {
                "dtype": TYPES[tensor.dtype],
                "shape": shape,
                "in": [{"file": file.name, "at": region}] if name in there else [],
            }
            for name, (tensor, shape, region) in parts.items()
        }
        if not there:
            continue
        try:
            digests[file.name] = write_all(file, there)
            with open(file, "rb") as source:
                os.fsync(source.fileno())
        except OSError as error:
            return {"wrong": error.strerror or str(error)}
    return {"wrong": "", "sha256": digests, "tensors": tensors}


def load(folder: Path, step: int | None) -> tuple[int, checkpoint.Snapshot]:
    """As `checkpoint.load`, by all processes together: each verifies some of the files, and reads no tensor yet.

    Raises: UsageError, ShoestringError in every process where any of them finds something wrong.
    """
    rank, processes = dist.get_rank(), dist.get_world_size()
    found, wrong = None, None
    try:
        found = checkpoint.load(folder, step, lambda number: number % processes == rank)
    except ShoestringError as error:
        wrong = [isinstance(error, UsageError), str(error)]
    for each in gather_json(wrong):
        if each is not None:
            raise (UsageError if each[0] else ShoestringError)(each[1])
    assert found is not None
    return found
