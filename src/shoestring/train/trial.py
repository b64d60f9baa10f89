"""A few steps of a planned run, timed before it begins: what the plan expects is then what this machine does."""

from statistics import median

from shoestring.budget.ledger import Ledger, account, peak_memory
from shoestring.budget.machine import Machine
from shoestring.contract.objective import At
from shoestring.data.dataset import Dataset
from shoestring.plan import rules
from shoestring.plan.pace import Pace, seconds_per_token
from shoestring.plan.sizes import flops_per_token
from shoestring.train.assembly import Parts, assemble
from shoestring.train.config import RunConfig
from shoestring.train.evaluate import Evaluator
from shoestring.train.starting import resolve
from shoestring.train.step_timings import Allowance

TRIAL = account("trial", "steps that are timed before a run, and thrown away")

LONGEST = 10.0
"""Seconds that a trial takes at most, however long the run."""

STEPS = 3
"""Steps that are timed, where there is time for more than one."""


def allowed(budget_seconds: float | None, expected: float, left: float, used: float = 0.0) -> float:
    """Seconds that a trial may take of a run of `expected` seconds, of whose budget `left` are not spent.

    used: on measuring, by now.
    """
    share = rules.MEASURING_SHARE * (budget_seconds or expected) - used
    return max(0.0, min(LONGEST, share, left / 2))


def try_out(
    config: RunConfig, dataset: Dataset, machine: Machine, ledger: Ledger, seconds: float, expected: float
) -> Pace | None:
    """The pace of `config`, from a few of its steps; None where `seconds` are not enough for any.

    What the steps learn is thrown away. On the ledger they are 'measure', and what only a process's first step takes
    'start'.

    expected: seconds of the run.
    Raises: as `starting.resolve`.
    """
    rate = machine.matmul[machine.best_precision]
    per_token = seconds_per_token(flops_per_token(config.model), config.model.width, rate)
    rows = config.train.micro_batch or config.train.batch
    count = config.train.batch if 6 * config.train.batch * config.model.context * per_token <= seconds else rows
    if 4 * count * config.model.context * per_token > seconds:
        return None
    allowance = Allowance(seconds, ledger.now)
    config = resolve(config, dataset, machine, ledger, expected)
    if allowance.left <= 0:
        return None
    with ledger.clock("start"):
        parts = assemble(config, dataset)
        for one in parts.applied:
            ledger.charge(one.decision.spent, TRIAL)
        _step(parts, 0, count, ledger)
    with ledger.clock("measure"):
        steps = [_step(parts, 1, count, ledger)]
        while len(steps) < STEPS and allowance.left > sum(steps[-1]):
            steps.append(_step(parts, len(steps) + 1, count, ledger))
        # several times the gradients of `count` sequences, and once the optimiser's step
        gradients, apply = (median(column) for column in zip(*steps, strict=True))
        step = gradients * config.train.batch / count + apply
        tokens = config.train.batch * config.model.context
        share = _forward_share(parts, step / config.train.batch, ledger)
    return Pace(
        per_token=step / tokens,
        forward_share=share,
        starting=0.1,
        memory=float(peak_memory()),
        measured=True,
    )


def _step(parts: Parts, number: int, count: int, ledger: Ledger) -> tuple[float, float]:
    """One step of `count` sequences. Returns the seconds of its gradients, batch included, and of the optimiser's step."""
    selection = parts.stepper.selection
    drawn = count if selection is None else count * selection.more
    began = ledger.now()
    result = parts.stepper.gradients(parts.source.batch(number * drawn, drawn), At(number))
    between = ledger.now()
    for charge in result.spent.values():
        ledger.charge(charge, TRIAL)
    assert result.targets
    parts.stepper.apply(0.01)  # low rates, as in warm-up
    return between - began, ledger.now() - between


def _forward_share(parts: Parts, per_sequence: float, ledger: Ledger) -> float:
    """What evaluating a sequence takes, as a share of training on it, from one batch."""
    whole = parts.evaluator
    one = Evaluator(
        whole.source,
        whole.byte_lengths,
        sequences=min(whole.rows, whole.sequences),
        rows=whole.rows,
        device=whole.device,
        precision=whole.precision,
        judge=whole.judge,
    )
    began = ledger.now()
    found = one(parts.model)
    ledger.charge(found.spent, TRIAL)
    return (ledger.now() - began) / found.sequences / per_sequence
