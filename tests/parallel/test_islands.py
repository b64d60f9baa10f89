"""Two islands of two processes against two workers of one process: losses, payloads, state; and what is not finite."""

import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from shoestring.config import Choice, build
from shoestring.contract.batch import Inputs
from shoestring.contract.model import LanguageModule
from shoestring.optim.partition import Partition, members, partition
from shoestring.optim.state import flatten_state
from shoestring.parallel.layout import ParallelLayout
from shoestring.parallel.region import as_whole
from shoestring.sync.diloco import DiLoCo
from shoestring.sync.flight import Round
from shoestring.sync.lockstep import Lockstep
from shoestring.sync.transport.local import LocalGroup
from shoestring.train import checkpoint
from tests.parallel.layout_models import native

STEPS, ROWS, LENGTH, VOCABULARY, ISLANDS, EACH = 20, 8, 8, 32, 2, 2
SPOILT = 11
"""The step after which, in the last row of the table, a weight of the second worker is not finite."""

FSDP, TENSOR, DATA = ({kind: EACH} for kind in ("fsdp", "tensor", "data"))
TABLE: list[tuple[str, dict[str, int], str, dict[str, Any]]] = [
    ("adamw", FSDP, "diloco", {"every": 7}),
    ("adamw", DATA, "diloco", {"every": 6, "fragments": 3, "overlap": 1}),
    ("adamw", FSDP, "diloco", {"every": 6, "fragments": 2, "average": "scatter"}),
    ("adamw", FSDP, "diloco", {"every": 6, "codec": {"name": "top_k"}, "feedback": 1.0}),
    ("muon", FSDP, "muloco", {"every": 6, "fragments": 3, "overlap": 2}),
    ("muon", TENSOR, "muloco", {"every": 6}),
    ("muon_hypersphere", FSDP, "muloco", {"every": 6, "codec": {"name": "linear", "bits": 2}, "held": "weights"}),
    ("muon", FSDP, "diloco", {"every": 7}),
]
"""(inner optimiser, layout of an island, outer loop, its options). 'tensor' adds up in another order than one process: a coarse
codec makes another code of that here and there, so it is compared without one."""


def part_of(step: int, worker: int, place: int | None, parts: int) -> list[tuple[Tensor, Tensor]]:
    """What a worker reads of a batch, in as many parts as its processes; or that of one of them."""
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(step))
    own = ids.chunk(ISLANDS)[worker].chunk(parts)
    return [(each[:, :-1], each[:, 1:]) for each in (own if place is None else own[place : place + 1])]


def loss_of(model: LanguageModule, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model.read(Inputs(inputs)).logits().flatten(0, 1), targets.flatten())


def claimed_by(model: LanguageModule, optimizer: str) -> Partition:
    options = {} if optimizer == "adamw" else {"precision": "float32"}
    return partition(model, Choice.of("optim", optimizer, **options), Choice.of("optim", "adamw"))


def loop_of(name: str, options: dict[str, Any]) -> Any:
    codec = dict(options.get("codec", {"name": "float32"}))
    chosen = Choice.of("sync", codec.pop("name"), kind="codec", **codec)
    return Choice.of("sync", name, kind="outer loop", **{**options, "codec": chosen}).build()


def told(rounds: list[Round]) -> list[dict[str, Any]]:
    keys = ("fragment", "step", "committed", "participants", "dropped", "notes", "sent")
    roles = [dict(each.sent_by_role) for each in rounds]
    return [
        {key: getattr(each, key) for key in keys} | {"roles": role} for each, role in zip(rounds, roles, strict=True)
    ]


def as_workers(row: int) -> list[dict[str, Any]]:
    """Both workers in this process: what each found."""
    optimizer, layout, name, options = TABLE[row]
    loop, parts = loop_of(name, options), build(ParallelLayout, layout).parts
    models = [native() for _ in range(ISLANDS)]
    steppers = [claimed_by(model, optimizer).build() for model in models]
    replicas: list[DiLoCo] = []
    for model, stepper, link in zip(models, steppers, LocalGroup(ISLANDS).transports, strict=True):
        roles = {member.name: member.role for member in members(model)}
        replicas.append(loop.attach(model, stepper, link, roles=roles))
    lockstep, losses = Lockstep(replicas), [list[float](), list[float]()]
    rounds: list[list[Round]] = [[], []]
    for step in range(STEPS):
        for worker, (model, stepper) in enumerate(zip(models, steppers, strict=True)):
            each = [loss_of(model, *part) / parts for part in part_of(step, worker, None, parts)]
            for loss in each:
                loss.backward()
            stepper.step()
            stepper.zero_grad()
            losses[worker].append(float(sum(each).detach()))  # type: ignore[union-attr]
            if row == len(TABLE) - 1 and (step, worker) == (SPOILT, 1):
                spoil(model.get_parameter("blocks.0.token_mixer.output.weight"))
        for own, ended in zip(rounds, lockstep.step([{"at": step}] * ISLANDS), strict=True):
            own += ended
    for own, ended in zip(rounds, lockstep.synchronise([{}] * ISLANDS), strict=True):
        own += ended
    found = []
    for worker, (model, replica) in enumerate(zip(models, replicas, strict=True)):
        tensors, values = replica.state_dict()
        inner, record = flatten_state(steppers[worker])
        local = dict(model.named_parameters())
        found.append(
            {
                "losses": losses[worker],
                "rounds": told(rounds[worker]),
                "tensors": {**tensors, **{f"inner.{key}": each for key, each in inner.items()}, **local},
                "values": [values, record],
            }
        )
    return found


@torch.no_grad()
def spoil(weight: Tensor) -> None:
    weight.view(-1)[0] = torch.nan


def as_island(rank: int, row: int, transport: Any, out: Path) -> dict[str, Any]:
    """One process of an island: what it found. Its part of the tensors goes to a checkpoint of the island."""
    from shoestring.parallel.island import IslandDiLoCo, IslandPart
    from shoestring.parallel.optimizer import ShardedOptimizer
    from shoestring.parallel.sharding import shard
    from shoestring.train import sharded_checkpoint

    optimizer, options, name, of_loop = TABLE[row]
    island, place = divmod(rank, EACH)
    layout, model = build(ParallelLayout, options), native()
    claimed = claimed_by(model, optimizer)
    sharded = shard(model, layout)
    stepper = ShardedOptimizer(sharded, claimed)
    part, losses, rounds = IslandPart(sharded, stepper), list[float](), list[Round]()
    roles = {member.name: member.role for member in members(model)}
    outer = loop_of(name, of_loop).attach(part, stepper, transport, roles=roles, kind=IslandDiLoCo)
    received = 0
    with outer:
        for step in range(STEPS):
            (own,) = part_of(step, island, layout.part(place), layout.parts)
            loss = loss_of(model, *own) / layout.parts
            (loss * sharded.gradient_scale).backward()
            sharded.reduce_gradients()
            stepper.step()
            stepper.zero_grad()
            total = loss.detach().clone()
            dist.all_reduce(total)
            losses.append(float(total) / layout.tensor)
            if row == len(TABLE) - 1 and (step, island) == (SPOILT, 1):
                weight = sharded.parameters["blocks.0.token_mixer.output.weight"]
                if place == 1:  # the other process sees nothing of it
                    spoil(weight.local())
                for own_whole in [part.wholes[weight.name]] if weight.name in part.wholes else []:
                    spoil(own_whole)
            part.received()
            ended = outer.step({"at": step})
            rounds += ended
            received += part.received()
        names = [name for each in rounds for name in part.fragments[each.fragment]]
        predicted = [outer.predicted_bytes(each.fragment) for each in rounds]
        within = part.bytes_within(names)
        rounds += outer.synchronise({})
    tensors, values = outer.state_dict()
    inner, record = stepper.state_here()
    kept = {key: as_whole(tensor) for key, tensor in tensors.items()}
    kept |= {f"inner.{key}": part for key, part in inner.items()}
    local = sharded_checkpoint.parts_here(sharded, ())
    sharded_checkpoint.save(out / f"{row}-{island}", 1, local, kept, {}, keep=1)
    held = sum(each.numel() for each in outer.weights.values())
    found = {"losses": losses, "rounds": told(rounds), "held": held, "predicted": predicted}
    found |= {"within": [received, within], "values": [values, record]}
    return found


def in_process(rank: int, port: int, out: Path) -> None:
    """One of the processes of all islands, through the table; the reference is made by the first two."""
    from shoestring.sync.rendezvous.joining import join, leave

    torch.set_num_threads(1)
    place = {"RANK": rank, "WORLD_SIZE": ISLANDS * EACH, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)

    everybody = join(300.0, island=EACH)
    assert (everybody.rank, everybody.size, dist.get_world_size()) == (rank, ISLANDS * EACH, EACH)
    peers = range(rank % EACH, ISLANDS * EACH, EACH)
    found = [as_island(rank, row, everybody.among(peers), out) for row in range(len(TABLE))]  # type: ignore[attr-defined]
    (out / f"{rank}.json").write_text(json.dumps(found))
    leave(everybody)


@pytest.fixture(scope="module")
def islands(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[dict[str, Any]]]]:
    """(where the islands' checkpoints lie, what each process found of each row)."""
    out = tmp_path_factory.mktemp("islands")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    context = multiprocessing.get_context("fork")  # torch is imported here already
    processes = [context.Process(target=in_process, args=(rank, port, out)) for rank in range(ISLANDS * EACH)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)
    return out, [json.loads((out / f"{rank}.json").read_text()) for rank in range(ISLANDS * EACH)]


@pytest.mark.parametrize(
    "row", range(len(TABLE)), ids=lambda row: "-".join([TABLE[row][0], *TABLE[row][1], TABLE[row][2]])
)
def test_two_islands_train_as_two_workers(islands: tuple[Path, list[list[dict[str, Any]]]], row: int) -> None:
    out, found = islands
    for island, alone in enumerate(as_workers(row)):
        mine = [found[island * EACH + place][row] for place in range(EACH)]
        first = mine[0]
        apart = [abs(one - other) for one, other in zip(alone["losses"], first["losses"], strict=True)]
        assert max(each for each in apart if each == each) < 1e-5, apart
        assert len({each["step"] for each in first["rounds"]}) > 2
        for one, other in zip(alone["rounds"], first["rounds"], strict=True):
            for key in ("fragment", "step", "committed", "participants", "dropped", "notes"):
                assert one[key] == other[key], key
            roles = [{key: count for key, count in each["roles"].items() if key != "control"} for each in (one, other)]
            assert roles[0] == roles[1]  # the same payloads, to the byte
        assert all(each["rounds"] == first["rounds"] for each in mine)
        snapshot = checkpoint.load(out / f"{row}-{island}")[1]
        tensors = {**snapshot.model, **snapshot.optimizer}
        assert tensors.keys() == alone["tensors"].keys()
        for name, tensor in alone["tensors"].items():
            assert torch.allclose(tensors[name], tensor.detach(), rtol=0, atol=1e-3), name
        values = alone["values"][0]
        assert first["values"][0] == json.loads(json.dumps(values))
        counted = [each["sent"] for each in first["rounds"][1 : len(first["predicted"])]]
        fixed = TABLE[row][3].get("codec", {}).get("name") != "top_k"
        if fixed:  # the first exchange has the settings check before it
            assert counted == first["predicted"][1:]
        assert all(each["within"][0] == each["within"][1] for each in mine if not TABLE[row][3].get("overlap"))
        held = [each["held"] for each in mine]
        assert sum(held) == sum(p.numel() for p in native().parameters())
        assert max(held) < 0.7 * sum(held)  # the outer loop's copies are divided


def test_an_island_of_which_a_part_is_not_finite_is_left_out_whole(
    islands: tuple[Path, list[list[dict[str, Any]]]],
) -> None:
    rounds = [own[-1]["rounds"] for own in islands[1]]
    dropped = [each["dropped"] for each in rounds[0]]
    assert dropped.count([1]) == 1
