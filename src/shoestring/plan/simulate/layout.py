"""Seconds, bytes and memory of a training step, by how it is divided over workers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from shoestring.budget.machine import Machine
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Count, NonNegative, Positive, method
from shoestring.plan import rules
from shoestring.plan.simulate.profile import OperatorTimes
from shoestring.plan.simulate.trace import Trace, trace

UPDATE_BYTES = 40
"""Read and written a parameter by an optimiser's step in float32: weight, gradient and two moments, and the gradient's norm."""

ROUND_MESSAGES = 3
"""Messages one after the other of an exchange of pseudo-gradients: parts, averages, and a vote (`sync/exchange.py`)."""


@dataclass(frozen=True)
class WorkerLink:
    """Between any two workers. bandwidth: bytes a second that each sends. latency: seconds of a message."""

    bandwidth: Positive
    latency: NonNegative = 0.0

    def __post_init__(self) -> None:
        if not self.bandwidth > 0 or self.latency < 0:
            raise UsageError("a link has a bandwidth above 0 and a latency of at least 0")

    def seconds(self, sent: float, messages: float) -> float:
        return sent / self.bandwidth + messages * self.latency


@dataclass(frozen=True)
class WorkerLayout:
    """How a step is divided.

    data: copies of the model, each with an equal part of every batch.
    tensor: workers between which each product of matrices is divided.
    stages: of a pipeline, an equal number of layers each.
    micro_batches: of a copy's part of the batch, one after the other.
    every: steps from one exchange of the copies to the next.
    bits: of a value that is exchanged.
    """

    data: Count = 1
    tensor: Count = 1
    stages: Count = 1
    micro_batches: Count = 1
    every: Count = 1
    bits: Positive = 32.0

    def __post_init__(self) -> None:
        for name in ("data", "tensor", "stages", "micro_batches", "every"):
            if getattr(self, name) < 1:
                raise UsageError(f"a layout's {name} is at least 1, and {getattr(self, name)} is not")
        if self.bits <= 0:
            raise UsageError("a layout's bits are above 0")

    @property
    def workers(self) -> int:
        return self.data * self.tensor * self.stages

    def __str__(self) -> str:
        parts = [f"{count} {name}" for name, count in (("data", self.data), ("tensor", self.tensor)) if count > 1]
        if self.stages > 1:
            parts.append(f"{self.stages} stages")
        return " x ".join(parts) or "1 worker"


@dataclass(frozen=True)
class Simulated:
    """A step.

    seconds: of all workers at once, the slowest.
    tokens: trained on.
    flops: of all workers together, as the ledger charges them.
    sent: bytes that a worker sends, at most.
    memory: bytes that a worker holds, at most.
    by_cause: seconds by what takes them; they add up to `seconds`.
    """

    layout: WorkerLayout
    seconds: float
    tokens: int
    flops: int
    sent: float
    memory: float
    by_cause: Mapping[str, float]

    @property
    def per_token(self) -> float:
        """Seconds."""
        return self.seconds / self.tokens


@method(
    "plan",
    kind="simulation",
    name="operator_profile",
    paper="vTrain: A Simulation Framework for Evaluating Cost-effective and Compute-optimal Large Language Model Training, "
    "arXiv:2312.12391",
    claim="a simulator driven by profiles tells fast and accurately how long a way to train takes, and so finds "
    "cost-effective ones",
    cost="each operator is timed once a machine, some 20 ms; then only adding up",
)
def simulate(
    model: LanguageModule,
    machine: Machine,
    times: OperatorTimes,
    traced: Trace | None = None,
    *,
    rows: Count,
    context: Count,
    layout: WorkerLayout | None = None,
    link: WorkerLink | None = None,
    precision: str = "float32",
    update_flops: Annotated[int, Interval(ge=0, le=2**63 - 1)] = 0,
) -> Simulated:
    """What a training step takes: the times of its operators, added up, and those of what workers send each other.

    Bang et al. (2023), arXiv:2312.12391. The operators of a pass at a worker's shapes are traced without computing anything, and
    each is timed once on this machine. With p stages and m micro-batches of seconds a each, a pass takes

        (m + p - 1) a / p

    and p - 1 of these parts are bubble. Tensor parallelism over t divides products of matrices and attention by t, and adds four
    all-reduces of the hidden states a layer, each of 2 (t - 1) / t of them sent. Data parallelism over d adds 2 (d - 1) / d of
    the weights sent, every `every` steps, as `sync/exchange.py` sends them. Nothing is taken to overlap.

    Differs: the paper simulates GPUs and the kernels of NCCL, with overlap; here are operators as torch calls them one by one, on
    whatever device there is, and not the code that a compiler makes of them. Layers between stages are taken as equal, embedding
    and head among them. The optimiser's step is reckoned, not traced: its FLOPs at the rate of large products, and its bytes.

    model: with or without weights.
    traced: a micro-batch's pass, where it is known.
    rows: sequences of a step, of all workers.
    context: tokens of each.
    layout: how the workers divide the step; None: there is one.
    link: between workers; needed where there are several.
    precision: of products, 'float32' or 'bfloat16'.
    update_flops: of the optimiser's step.
    Raises: UsageError where the layout does not divide the step.
    """
    layout = layout or WorkerLayout()
    count = layout.data * layout.micro_batches
    if rows % count:
        raise UsageError(
            f"{rows} sequences do not divide into {layout.data} copies of {layout.micro_batches} micro-batches: give a "
            f"multiple of {count}"
        )
    about = model.about
    if about.layers % layout.stages:
        raise UsageError(f"{about.layers} layers do not divide into {layout.stages} stages")
    if link is None and layout.workers > 1:
        raise UsageError("a layout of several workers needs a link between them")
    link = link or WorkerLink(float("inf"))
    micro = rows // count
    found = traced or trace(model, micro, context, precision=precision, device=machine.device)
    times.learn(found.operators)
    spent = {True: 0.0, False: found.calls * times.call}
    for one, often in found.operators.items():
        spent[one.product] += often * times.seconds(one)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    share = trained / (layout.tensor * layout.stages)
    hidden = micro * context * about.width * (2 if precision == "bfloat16" else 4)
    by_cause, sent = _passes(layout, link, spent[True], spent[False], hidden, about.layers)
    rate = machine.matmul[machine.best_precision]
    by_cause["update"] = (
        update_flops / (layout.tensor * layout.stages) / rate + UPDATE_BYTES * share / machine.bandwidth
    )
    if layout.data > 1:
        moved = 2 * (layout.data - 1) / layout.data * share * layout.bits / 8
        by_cause["exchange of copies"] = link.seconds(moved, ROUND_MESSAGES) / layout.every
        sent += moved / layout.every
    kept = min(layout.micro_batches, layout.stages)  # micro-batches whose activations wait for their backward pass
    activations = kept * micro * context * about.width * about.layers / layout.stages * rules.ACTIVATION_FLOATS * 4
    logits = micro * context * about.vocabulary * 8
    return Simulated(
        layout=layout,
        seconds=sum(by_cause.values()),
        tokens=rows * context,
        flops=count * model.cost(Shape(micro, context, backward=True)).flops + update_flops * layout.data,
        sent=sent,
        memory=16 * share + activations + logits,
        by_cause=by_cause,
    )


def _passes(
    layout: WorkerLayout, link: WorkerLink, products: float, others: float, hidden: float, layers: int
) -> tuple[dict[str, float], float]:
    """(seconds by cause, bytes that a worker sends) of all forward and backward passes of a step.

    products, others: seconds of a micro-batch on one worker. hidden: bytes of its hidden states.
    """
    many, stages, tensor = layout.micro_batches, layout.stages, layout.tensor
    products /= tensor
    by_cause = {"products": many * products / stages, "other operators": many * others / stages}
    sent = 0.0
    if tensor > 1:
        reduces = 4 * layers / stages
        moved = reduces * 2 * (tensor - 1) / tensor * hidden
        by_cause["exchange of products"] = many * link.seconds(moved, reduces * 2 * (tensor - 1))
        sent += many * moved
    if stages > 1:
        by_cause["pipeline bubble"] = (stages - 1) * sum(by_cause.values()) / many
        by_cause["exchange of stages"] = 2 * (many + stages - 2) * link.seconds(hidden, 1)
        sent += 2 * many * hidden
    return by_cause, sent


def layouts(workers: int, *, layers: int, heads: int, rows: int, micro_batches: int = 1) -> Iterator[WorkerLayout]:
    """Every way to divide a step over so many workers.

    layers: stages divide them. heads: tensor parallelism divides them. rows: copies and micro-batches divide them.
    micro_batches: of a pipeline; of others there is one.
    """
    for stages in range(1, workers + 1):
        for tensor in range(1, workers // stages + 1):
            data, left = divmod(workers, stages * tensor)
            many = micro_batches if stages > 1 else 1
            if left or layers % stages or heads % tensor or rows % (data * many):
                continue
            yield WorkerLayout(data, tensor, stages, many)
