"""What two processes do under each layout, beside one process: losses, weights, states, gradients and bytes."""

import json
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from shoestring.config import Choice, build
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.model import LanguageModule
from shoestring.contract.objective import At
from shoestring.model.moe import MixtureOfExperts
from shoestring.objective.cross_entropy import plain
from shoestring.objective.next_token import NextToken
from shoestring.optim.partition import Partition, partition
from shoestring.optim.state import flatten_state
from shoestring.parallel.layout import ParallelLayout
from shoestring.train import checkpoint, sharded_checkpoint
from shoestring.train.noise_scale import NoiseScale
from tests.parallel.layout_models import VOCABULARY

WHOLE = frozenset({"experts"})
"""Models whose terms of the loss are of the whole batch, however it is divided: one process reads it in one piece."""

STEPS, ROWS, LENGTH = 10, 4, 8

DATA, FSDP, TENSOR, CONTEXT = ({kind: 2} for kind in ("data", "fsdp", "tensor", "context"))
TABLE: list[tuple[str, str, dict[str, Any]]] = [
    ("native", "adamw", DATA),
    ("native", "adamw", {**FSDP, "checkpointing": "layers"}),
    ("native", "adamw", TENSOR),
    ("native", "muon", FSDP),
    ("native", "muon", {**TENSOR, "checkpointing": "products"}),
    ("native", "soap", FSDP),
    ("bridged", "muon", {**FSDP, "checkpointing": "products"}),
    ("bridged", "adamw", TENSOR),
    ("biased", "muon", TENSOR),
    ("wrapped", "adamw", DATA),
    ("native", "adamw", CONTEXT),
    ("bridged", "muon", {**CONTEXT, "checkpointing": "layers"}),
    ("experts", "adamw", {**DATA, "expert": 2}),
    ("experts", "muon", {**DATA, "expert": 2, "checkpointing": "layers"}),
    ("experts", "muon_hypersphere", {**DATA, "expert": 2}),
    ("sinkhorn", "muon", {**DATA, "expert": 2}),
    ("expert_choice", "adamw", {**DATA, "expert": 2}),
    ("one_router", "adamw", {**FSDP, "expert": 2}),
    ("adapted", "adamw", DATA),
    ("adapted", "muon", FSDP),
    ("ternary", "muon", FSDP),
    ("adapted", "adamw", CONTEXT),
    ("cut", "adamw", FSDP),
    ("ladder", "adamw", TENSOR),
]
"""(model, optimiser, layout). SOAP turns the rounding of its first gradient into other eigenvectors wherever two eigenvalues
are alike (one process with other micro-batches ends as far off), so it is compared where gradients are summed in one order."""

MOVES: list[tuple[str, dict[str, int], dict[str, int]]] = [
    ("native", FSDP, TENSOR),
    ("experts", {**FSDP, "expert": 2}, {**DATA, "expert": 2}),  # what it keeps is pruned below
    ("experts", {**DATA, "expert": 2}, FSDP),
    ("native", CONTEXT, FSDP),
    ("native", FSDP, CONTEXT),
]
"""(model, its layout, the layout under which it goes on from its checkpoint)."""


def batch(step: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(step))
    return ids[:, :-1], ids[:, 1:]


def loss_of(model: LanguageModule, inputs: Tensor | Inputs, targets: Tensor) -> Tensor:
    reading = model.read(Inputs(inputs) if isinstance(inputs, Tensor) else inputs)
    loss = F.cross_entropy(reading.logits().flatten(0, 1), targets.flatten())
    auxiliary = reading.auxiliary()
    return loss if auxiliary is None else loss + auxiliary


def claimed_by(model: LanguageModule, optimizer: str) -> Partition:
    options = {"precision": "float32"} if optimizer.startswith("muon") else {}
    return partition(model, Choice.of("optim", optimizer, **options), Choice.of("optim", "adamw"))


def trained_alone(
    model: LanguageModule, optimizer: str, pieces: int = 2
) -> tuple[list[float], dict[str, Tensor], tuple[Any, Any]]:
    """By one process, which takes each batch in two parts, as two processes do; or whole, where what is said of it is of all."""
    stepper, losses = claimed_by(model, optimizer).build(), []
    for step in range(STEPS):
        parts = [part.chunk(pieces) for part in batch(step)]
        each = [loss_of(model, *part) / pieces for part in zip(*parts, strict=True)]
        for loss in each:
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        stepper.step()
        stepper.zero_grad()
        losses.append(float(sum(each).detach()))  # type: ignore[union-attr]
    return losses, {name: p.detach().clone() for name, p in model.named_parameters()}, flatten_state(stepper)


def own_part(batch: Batch, layout: ParallelLayout) -> Batch:
    """What this process reads of a batch."""
    from shoestring.parallel.context_parallel import part_of_rows

    rank = dist.get_rank()
    own = batch.split(batch.rows // layout.parts)[layout.part(rank)]
    return part_of_rows(own, layout.places(rank)["context"], layout.context) if layout.context > 1 else own


def added_up(tensor: Tensor) -> Tensor:
    total = tensor.clone()
    dist.all_reduce(total)
    return total


class Together:
    """One of the processes that train a model."""

    def __init__(self, model: LanguageModule, optimizer: str, layout: ParallelLayout) -> None:
        from shoestring.parallel.optimizer import ShardedOptimizer
        from shoestring.parallel.sharding import shard

        claimed, self.layout = claimed_by(model, optimizer), layout
        self.sharded = shard(model, layout)
        self.optimizer = ShardedOptimizer(self.sharded, claimed)
        self.model = model

    def save(self, folder: Path, step: int) -> None:
        moments, record = self.optimizer.state_here()
        weights = sharded_checkpoint.parts_here(self.sharded, ())
        sharded_checkpoint.save(folder, step, weights, moments, {"optimizer": record}, keep=1)

    def load(self, folder: Path) -> None:
        _, snapshot = sharded_checkpoint.load(folder, None)
        self.sharded.load(snapshot.model)
        self.optimizer.take_state(snapshot.optimizer, snapshot.state["optimizer"])

    def train(self, steps: range) -> list[float]:
        losses, layout = [], self.layout
        for step in steps:
            own = own_part(Batch(Inputs(batch(step)[0]), batch(step)[1]), layout)
            listening: list[Any] = [each for each in self.model.modules() if hasattr(each, "begin_part")]
            for module in listening:
                module.begin_part(0, added_up)
            loss = loss_of(self.model, own.inputs, own.targets) / (layout.parts * layout.context)
            (loss * self.sharded.gradient_scale).backward()
            self.sharded.reduce_gradients()
            self.sharded.clip_gradients(1e9)
            self.optimizer.step()
            self.optimizer.zero_grad()
            total = loss.detach().clone()
            dist.all_reduce(total)
            losses.append(float(total) / layout.tensor)
        return losses


def every_layout(rank: int, port: int, models: dict[str, Callable[[], LanguageModule]], out: Path) -> None:
    """In each of two processes: the table, then a run that changes its layout halfway."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=100)
    )
    found: list[dict[str, Any]] = []
    for kind, optimizer, options in TABLE:
        run = Together(models[kind](), optimizer, build(ParallelLayout, options))
        own = run.train(range(STEPS))
        at = out / f"table-{len(found)}"
        run.save(at, STEPS)
        held = sum(t.numel() for t in flatten_state(run.optimizer)[0].values())
        if rank > 0:  # what is whole is so in every process
            found.append({"held": held})
            continue
        snapshot = checkpoint.load(at)[1]
        whole, state, saved = snapshot.model, snapshot.optimizer, snapshot.state["optimizer"]
        losses, weights, (tensors, record) = trained_alone(models[kind](), optimizer, 1 if kind in WHOLE else 2)
        found.append(
            {
                "held": held,
                "all": sum(t.numel() for t in tensors.values()),
                "loss": max(abs(one - other) for one, other in zip(losses, own, strict=True)),
                "weights": max(float((weights[name] - whole[name]).abs().max()) for name in weights),
                "names": weights.keys() == whole.keys(),
                "state": max((float((tensors[key] - state[key]).abs().max()) for key in state), default=0.0),
                "record": saved == record and state.keys() == tensors.keys(),
            }
        )
    apart = expert_gradients(models["exact_experts"])
    received = bytes_of_experts(models["soft"])
    rows = context_gradients(models["exact_grouped"])
    moves = []
    for number, (kind, before, after) in enumerate(MOVES):
        at, pieces = out / f"moved-{number}", 1 if kind in WHOLE else 2
        moves.append(moved(models[kind], before, after, at, pieces))
    noise = [noise_measured(models["native"](), build(ParallelLayout, given)) for given in (DATA, FSDP)]
    narrow = gathered_in_bfloat16(models["native"])
    measured = {
        "table": found,
        "moved": moves,
        "gradients": apart,
        "bytes": received,
        "rows": rows,
        "noise": noise,
        "narrow": narrow,
    }
    (out / f"{rank}.json").write_text(json.dumps(measured))
    dist.destroy_process_group()


def moved(
    make: Callable[[], LanguageModule], before: dict[str, int], after: dict[str, int], out: Path, pieces: int
) -> float:
    """The largest difference of a loss to one process's of a run that goes on under another layout from halfway."""
    first, rank, half = Together(make(), "muon", build(ParallelLayout, before)), dist.get_rank(), STEPS // 2
    losses = first.train(range(half))
    first.save(out, half)
    second = Together(make(), "muon", build(ParallelLayout, after))
    second.load(out)
    losses += second.train(range(half, STEPS))
    alone = trained_alone(make(), "muon", pieces)[0] if rank == 0 else losses
    return max(abs(one - other) for one, other in zip(alone, losses, strict=True))


def expert_gradients(make: Callable[[], LanguageModule]) -> float:
    """The largest difference, in float64, of a gradient of divided experts to one of the formula, expert by expert."""
    run = Together(make(), "adamw", ParallelLayout(data=2, expert=2))
    own = half(batch(0))
    (loss_of(run.model, *own) / 2).backward()
    run.sharded.reduce_gradients()
    parameters = run.sharded.parameters
    gradients = {name: one.whole(one.local_gradient()) for name, one in parameters.items()}  # type: ignore[arg-type]
    slow = make()
    for module in slow.modules():
        if isinstance(module, MixtureOfExperts):
            module.forward = partial(by_the_formula, module)  # type: ignore[method-assign]
    loss_of(slow, *batch(0)).backward()
    return max(float((gradients[name] - one.grad).abs().max()) for name, one in slow.named_parameters())  # type: ignore[operator]


def context_gradients(make: Callable[[], LanguageModule]) -> tuple[float, int, int]:
    """(the largest difference, in float64, of a gradient of divided rows of packed documents to that of whole rows; bytes of keys,
    values and their gradients that came; what the formula says)."""
    from shoestring.parallel import ring_attention
    from shoestring.parallel.traffic import ring
    from shoestring.train.parallel import step_traffic

    inputs, targets = batch(0)
    documents = torch.tensor([[0] * 3 + [1] * 5, [0] * 8, [0] + [1] * 6 + [2], [0] * 4 + [1] * 4])
    positions = torch.cat([torch.arange(n) for row in documents for n in row.bincount()]).view_as(documents)
    whole = Batch(Inputs(inputs, positions, documents), targets)
    layout, received, receive = ParallelLayout(context=2), 0, dist.irecv

    def counted(tensor: Tensor, **options: Any) -> Any:
        nonlocal received
        received += tensor.nbytes
        return receive(tensor, **options)

    run, ring_attention.TILE = Together(make(), "adamw", layout), 3
    dist.irecv = counted  # type: ignore[assignment]
    own = own_part(whole, layout)
    (loss_of(run.model, own.inputs, own.targets) / 2).backward()
    dist.irecv = receive
    run.sharded.reduce_gradients()
    slow = make()
    loss_of(slow, whole.inputs, targets).backward()
    own_gradients = {name: one.local_gradient() for name, one in run.sharded.parameters.items()}
    apart = max(float((own_gradients[name] - one.grad).abs().max()) for name, one in slow.named_parameters())  # type: ignore[operator]
    formula = step_traffic(run.sharded, run.optimizer, own, ROWS).context
    size = 8 * sum(one.numel() for one in slow.parameters())
    return apart, received, 2 * (formula - round(2 * ring(size, 2)))  # of values of 4 bytes


def bytes_of_experts(make: Callable[[], LanguageModule]) -> tuple[int, int]:
    """(bytes of tokens and answers that this process received in a step, what the formula says). All go everywhere."""
    received, exchange = 0, dist.all_to_all_single

    def counted(output: Tensor, rows: Tensor, *splits: Any, **group: Any) -> None:
        nonlocal received
        exchange(output, rows, *splits, **group)
        if splits:  # else they tell each other how many are coming
            received += (sum(splits[0]) - splits[0][dist.get_rank()]) * output.shape[1] * output.element_size()

    from shoestring.train.parallel import step_traffic

    run = Together(make(), "adamw", ParallelLayout(data=2, expert=2))
    dist.all_to_all_single = counted  # type: ignore[assignment]
    try:
        run.train(range(1))
    finally:
        dist.all_to_all_single = exchange
    inputs, targets = half(batch(0))
    return received, step_traffic(run.sharded, run.optimizer, Batch(Inputs(inputs), targets), ROWS).expert


def half(parts: tuple[Tensor, Tensor]) -> list[Tensor]:
    return [part.chunk(2)[dist.get_rank()] for part in parts]


def by_the_formula(layer: MixtureOfExperts, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """y = sum_e w_e W_out,e (silu(W_gate,e x) * W_up,e x), e the two of the largest softmax(W x), of which the w add up to 1."""
    shares = F.linear(x, layer.router.gate.weight).softmax(-1)
    best = shares >= shares.topk(2).values[..., -1:]
    weights = torch.where(best, shares, 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    said = torch.zeros_like(x)
    for expert, (reading, writing) in enumerate(zip(layer.input.weight, layer.output.weight, strict=True)):
        gate, up = F.linear(x, reading).chunk(2, -1)
        said = said + weights[..., expert, None] * F.linear(F.silu(gate) * up, writing)
    return said, {}


def noise_measured(model: LanguageModule, layout: ParallelLayout) -> list[float]:
    """The squared norm of the small batch, and its tokens, as the processes of a layout measure them; as one process finds them."""
    from shoestring.train.sharded_step import sharded_stepper

    class Told(NoiseScale):
        def measure(self, small_squared: float, small: int, big_squared: float, big: int) -> None:
            found.extend((small_squared, small, big_squared, big))

    def squared(rows: Tensor) -> float:
        model.zero_grad()
        loss_of(model, inputs[rows], targets[rows]).backward()
        return float(sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None))

    found, (inputs, targets) = list[float](), batch(0)
    firsts = [torch.tensor([0]), torch.tensor([2])]  # the first micro-batch of each process
    small = squared(torch.cat(firsts)) if layout.fsdp > 1 else sum(map(squared, firsts)) / 2
    expected = [small, LENGTH * (2 if layout.fsdp > 1 else 1), squared(torch.arange(ROWS)), ROWS * LENGTH]
    model.zero_grad()
    options = {"device": "cpu", "precision": "float32", "micro_batch": 1, "clip": 1e9, "noise_scale": Told()}
    stepper, _ = sharded_stepper(model, layout, claimed_by(model, "adamw"), NextToken(plain), **options)
    own = slice(dist.get_rank() * 2, dist.get_rank() * 2 + 2)
    stepper.gradients(Batch(Inputs(inputs[own]), targets[own]), At())
    return [abs(one / other - 1) for one, other in zip(found, expected, strict=True)]


def gathered_in_bfloat16(model: Callable[[], LanguageModule]) -> dict[str, Any]:
    """What weights are while a layer computes and as they are kept, and by how much losses differ from those of float32 gathers."""
    losses, seen = [], set()
    for precision in ("float32", "bfloat16"):
        run = Together(model(), "adamw", build(ParallelLayout, {**FSDP, "precision": precision}))
        part = run.model.get_submodule("blocks.0.channel_mixer.output")
        part.register_forward_pre_hook(lambda module, _, p=precision: seen.add((p, str(module.weight.dtype))))
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):  # it would keep the weights of the first step
            losses.append(run.train(range(STEPS // 2)))
    kept = {str(one.local().dtype) for one in run.sharded.parameters.values()}
    kept |= {str(each.dtype) for each in flatten_state(run.optimizer)[0].values() if each.ndim}
    apart = max(abs(one - other) for one, other in zip(*losses, strict=True))
    return {"seen": sorted(seen), "kept": sorted(kept), "apart": apart}
