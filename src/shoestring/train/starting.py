"""A new run that begins from the weights of an earlier one: continual pre-training, or a branch off a trunk."""

from pathlib import Path

from shoestring.config import Tree, build, merge, tree
from shoestring.data.dataset import Dataset
from shoestring.errors import ShoestringError, UsageError
from shoestring.model.config import ModelConfig
from shoestring.optim.state import restore_state
from shoestring.train import checkpoint
from shoestring.train.assembly import Parts
from shoestring.train.config import StartConfig
from shoestring.train.run_folder import RunFolder
from shoestring.train.step import Stepper

OWN = ("lr", "base_lr", "weight_decay", "beta1", "beta2", "betas", "epsilon", "eps")
"""Options of a parameter group that are the new run's, whatever the state of the earlier one says."""


SHAPE = (
    "layers",
    "width",
    "heads",
    "key_value_heads",
    "head_width",
    "hidden",
    "token_mixer",
    "channel_mixer",
    "norm",
    "residual",
    "pattern",
    "span",
    "tied",
)
"""The keys of [model] by which the weights of a model have their names and shapes; the tokenizer has the vocabulary."""


def with_start(asked: Tree, start: StartConfig) -> Tree:
    """What was asked for, with the shape of the model that the run is to start from where it is left open.

    Raises: UsageError where another shape is asked for, or there is no such run.
    """
    theirs = tree(RunFolder.open(Path(start.run)).read_config().model)
    asked_model = dict(asked.get("model", {}))
    ours = tree(build(ModelConfig, merge({key: theirs[key] for key in SHAPE}, asked_model)))
    for key in SHAPE:
        if key in asked_model and ours[key] != theirs[key]:
            raise UsageError(
                f"model.{key} = {asked_model[key]} is not the shape of {start.run}, which has {theirs[key]}: leave it out, and "
                "the model is of that shape"
            )
    return merge(asked, {"model": {key: theirs[key] for key in SHAPE}})


def require_start(start: StartConfig, model: ModelConfig, dataset: Dataset) -> None:
    """Raises: UsageError where the run to start from has another tokenizer, or a model of another shape."""
    folder = RunFolder.open(Path(start.run))
    if folder.read_tokenizer().fingerprint != dataset.tokenizer.fingerprint:
        its = folder.tokenizer / "tokenizer.json"
        raise UsageError(f"{start.run} has another tokenizer than this run: give --data.tokenizer {its}")
    theirs = folder.read_config().model
    if any(getattr(theirs, key) != getattr(model, key) for key in SHAPE):
        raise UsageError(f"the model of {start.run} is not of the shape asked for: give the same [model]")


def begin_from(start: StartConfig, parts: Parts, dataset: Dataset) -> str:
    """Put the weights of an earlier run in the model of each worker of this process, and its state in their optimisers if asked.
    Returns a line that says so.

    Raises: UsageError where that run has another tokenizer, model or optimiser; ShoestringError where it is damaged.
    """
    folder = RunFolder.open(Path(start.run))
    if folder.read_tokenizer().fingerprint != dataset.tokenizer.fingerprint:
        its = folder.tokenizer / "tokenizer.json"
        raise UsageError(f"{start.run} has another tokenizer than this run: give --data.tokenizer {its}")
    step, snapshot = checkpoint.load(folder.checkpoints, start.step)
    for stepper in parts.steppers:
        _begin(stepper, snapshot, start)
    return f"begun from step {step} of {start.run}" + (", its optimiser's state included" if start.optimizer else "")


def _begin(stepper: Stepper, snapshot: checkpoint.Snapshot, start: StartConfig) -> None:
    """One worker's part of it."""
    try:
        stepper.model.load_state_dict(snapshot.model)
    except RuntimeError:
        raise UsageError(f"the model of {start.run} is not of the shape asked for: give the same [model]") from None
    if not start.optimizer:
        return
    record = snapshot.state["optimizer"]
    if "optimizer" not in record:
        raise UsageError(
            f"{start.run} has the optimiser's state of each of its workers, and none of all: "
            "begin with a new optimiser by --start.optimizer false"
        )
    groups = stepper.optimizer.param_groups
    own = [{key: group[key] for key in OWN if key in group} for group in groups]
    try:
        restore_state(stepper.optimizer, snapshot.optimizer, record)
    except ShoestringError as error:
        raise UsageError(f"{error}: begin with a new optimiser by --start.optimizer false") from None
    for group, options in zip(stepper.optimizer.param_groups, own, strict=True):
        group.update(options)
