"""The folder of a run."""

from functools import partial
from pathlib import Path

import torch

from shoestring.base.opened import Opened, Provenance
from shoestring.base.quantised_model import QuantisedTransformer
from shoestring.config import tree
from shoestring.contract.model import LanguageModule
from shoestring.method import method
from shoestring.train.config import RunConfig
from shoestring.train.edits import fold_edits
from shoestring.train.run_folder import RUN, RunFolder, run_and_step
from shoestring.train.trained import Trained, load_trained


@method(
    "train.openers",
    kind="opener",
    name="run",
    claim="the model of a run's newest checkpoint, edits applied",
    cost="reads the checkpoint once",
)
class RunOpener:
    """A run's folder, or that of one of its checkpoints.

    The model of that or of the newest checkpoint, with its edits applied.
    """

    def accepts(self, place: str) -> bool:
        path, _ = run_and_step(place)
        return Path(place).is_dir() and RUN.begun(path)

    def open(self, place: str, dtype: torch.dtype | None) -> Opened:
        trained = load_trained(*run_and_step(place))
        if dtype is not None:
            (plainly(trained.model) if trained.config.model.packed else trained.model).to(dtype)
        edits = [one.name for one in trained.applied]
        below = [choice.name for config in reversed(_bases(trained)) for choice in config.edits]
        values = {"step": trained.step, "edits": edits, "base_edits": below, "data": tree(trained.config.data)}
        template = trained.tokenizer.chat_template
        about = Provenance(str(Path(place).absolute()), "run", trained.digest, chat_template=template, values=values)
        return Opened(trained.model, trained.tokenizer, about, partial(folded, trained))


def folded(trained: Trained) -> LanguageModule:
    """The model of plain layers that computes the same: the run's edits folded, then those of the runs that it is based on.

    Raises: UsageError where an edit has no such model.
    """
    model = plainly(fold_edits(trained.model, trained.applied))
    for config in _bases(trained):
        for choice in reversed(config.edits):
            model = choice.build().fold(model)
    model.changed()
    return model


def plainly(model: LanguageModule) -> LanguageModule:
    """A model with what was packed of its base in plain numbers."""
    return model.unpacked() if isinstance(model, QuantisedTransformer) else model


def _bases(trained: Trained) -> list[RunConfig]:
    """The configurations of the runs that a run is based on, the nearest first."""
    found, place = list[RunConfig](), trained.config.model.base
    while place and RunOpener().accepts(place):
        found.append(RunFolder.open(run_and_step(place)[0]).read_config())
        place = found[-1].model.base
    return found
