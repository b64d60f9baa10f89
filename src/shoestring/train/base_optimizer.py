"""A run that goes on from another run's optimiser as well as from its weights: a branch off a trunk."""

from shoestring.errors import ShoestringError, UsageError
from shoestring.train import checkpoint
from shoestring.train.assembly import Parts
from shoestring.train.run_folder import RunFolder, run_and_step

OWN = ("lr", "base_lr", "weight_decay", "beta1", "beta2", "betas", "epsilon", "eps")
"""Options of a parameter group that are the new run's, whatever the state of the earlier one says."""

WITHOUT = "begin with a new optimiser by --train.base_optimizer false"


def take_optimizer(place: str, parts: Parts) -> str:
    """Put the state of an earlier run's optimiser in those of the workers of this process. Returns a line that says so.

    place: the base: a run, or one of its checkpoints.
    Raises: UsageError where that run has another optimiser; ShoestringError where it is damaged.
    """
    path, asked = run_and_step(place)
    step, snapshot = checkpoint.load(RunFolder.open(path).checkpoints, asked)
    record = snapshot.state["optimizer"]
    if "optimizer" not in record:
        raise UsageError(f"{place} has the optimiser's state of each of its workers, and none of all: {WITHOUT}")
    for stepper in parts.steppers:
        groups = stepper.optimizer.param_groups
        own = [{key: group[key] for key in OWN if key in group} for group in groups]
        try:
            stepper.take_optimizer(snapshot.optimizer, record)
        except ShoestringError as error:
            raise UsageError(f"{error}: {WITHOUT}") from None
        for group, options in zip(stepper.optimizer.param_groups, own, strict=True):
            group.update(options)
    return f"begun from step {step} of {path}, its optimiser's state included"
