"""Seconds and bytes of serving: answers read and written, from a model's own cost and what the machine does."""

from dataclasses import dataclass

from shoestring.budget.machine import Machine
from shoestring.contract.cost import Cost, Shape
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.plan import rules
from shoestring.plan.simulate.layout import WorkerLayout, WorkerLink


@dataclass(frozen=True)
class Served:
    """An answer of one of several that are written at once.

    seconds: from its prompt to its last token. flops: its own. moved: bytes of weights and cache read for it, its share of
    what all read together. sent: bytes that a worker sends for it. memory: bytes that a worker holds, for all answers.
    """

    seconds: float
    flops: float
    moved: float
    sent: float
    memory: float


def simulate_serving(
    model: LanguageModule,
    machine: Machine,
    *,
    prompt: int,
    written: int,
    rows: int = 1,
    layout: WorkerLayout | None = None,
    link: WorkerLink | None = None,
) -> Served:
    """What an answer takes: a pass over the prompt, and a pass for each token that is written.

    A pass takes the longer of its FLOPs at the rate that products of this width reach and the bytes it reads at the machine's
    bandwidth; both are those of `model.cost`, which requests are charged too. `layout` divides them: `tensor` workers each do a
    part of every pass and exchange hidden states twice a layer; `stages` come one after the other and divide what each holds;
    `data` copies answer different requests. The cache grows along the answer, so passes are reckoned at the middle of it.

    prompt, written: tokens of an answer.
    rows: answers that a copy works on at once.
    Raises: UsageError for an answer that does not fit the model's context.
    """
    layout = layout or WorkerLayout()
    about = model.about
    if prompt < 1 or written < 1 or prompt + written > about.context:
        raise UsageError(
            f"a prompt of {prompt} and an answer of {written} tokens do not fit a context of {about.context} tokens"
        )
    if link is None and layout.workers > layout.data:
        raise UsageError("a model that is divided between workers needs a link between them")
    link = link or WorkerLink(float("inf"))
    rate = machine.matmul[machine.best_precision] * rules.utilisation(about.width)
    seconds, total, sent = 0.0, Cost(), 0.0
    for shape, often in (
        (Shape(rows, prompt, 0, outputs=1), 1),
        (Shape(rows, 1, prompt + written // 2, outputs=1), written - 1),
    ):
        cost = model.cost(shape)
        hidden = shape.tokens * about.width * 4
        moved = hops = 0.0
        if layout.tensor > 1:
            reduces = 2 * about.layers
            moved, hops = reduces * 2 * (layout.tensor - 1) / layout.tensor * hidden, reduces * 2 * (layout.tensor - 1)
        if layout.stages > 1:
            moved, hops = moved + (layout.stages - 1) * hidden, hops + layout.stages - 1
        each = max(cost.flops / rate, cost.moved / machine.bandwidth) / layout.tensor + link.seconds(moved, hops)
        seconds += often * each
        sent += often * moved
        total = total + Cost(often * cost.flops, often * cost.moved, cost.held)
    last = model.cost(Shape(rows, 1, prompt + written - 1, outputs=1))
    return Served(
        seconds=seconds,
        flops=total.flops / rows,
        moved=total.moved / rows,
        sent=sent / rows,
        memory=max(total.held, last.held) / (layout.tensor * layout.stages),
    )
