"""Several adapters beside one model: of the runs that trained them, and of folders as peft writes them."""

from collections.abc import Mapping
from pathlib import Path

from shoestring.base.adapters import read_on
from shoestring.base.opened import Opened
from shoestring.contract.edit import Decision
from shoestring.contract.model import LanguageModule
from shoestring.errors import ShoestringError, UsageError
from shoestring.train import checkpoint
from shoestring.train.edits import read_decisions
from shoestring.train.run_folder import RUN, RunFolder, run_and_step
from shoestring.tune.adapter_edit import AdapterEdit
from shoestring.tune.several import Several


def several_adapters(base: Opened, folders: Mapping[str, Path]) -> Several:
    """The adapters of these folders beside one model, by the names that requests are to call them.

    A folder is that of a run of `shoestring tune` or of one of its checkpoints, or as peft writes it. Which base peft's folder
    names does not matter: it is put on this one. A run must have been tuned on this very model.
    Raises: UsageError for a model that takes none, and a folder that does not fit it.
    """
    model = base.model
    if not isinstance(model, LanguageModule):
        raise UsageError(f"{base.about.place} is of the kind '{base.about.kind}', which takes no adapters")
    several = Several(model)
    for name, folder in folders.items():
        run, step = run_and_step(str(folder))
        try:
            found = adapter_of_run(base, run, step) if RUN.begun(run) else read_on(base, model, folder)
            several.add(name, *found)
        except UsageError as error:
            raise UsageError(f"the adapter {folder}: {error}") from None
    return several


def adapter_of_run(base: Opened, run: Path, step: int | None = None) -> tuple[AdapterEdit, Decision]:
    """The adapters that a run trained, and how they are placed. Its base is not opened again: a checkpoint has the adapters alone.

    base: the model that the run was tuned on; it stays as it is. step: of the checkpoint; None: the newest.
    Raises: UsageError where the run trained none, or on another model; ShoestringError where it is damaged.
    """
    folder = RunFolder.open(run)
    config = folder.read_config()
    edit = config.edits[-1].build() if config.edits else None
    if not isinstance(edit, AdapterEdit) or not config.model.base:
        raise UsageError("this run trained no adapters beside a model: it is one by itself, so open it")
    if len(config.edits) > 1:
        others = ", ".join(choice.name for choice in config.edits[:-1])
        raise UsageError(
            f"its adapters are of a model with {others}, and not of {base.about.place}: open the run itself"
        )
    if config.model.digest != base.about.digest:
        raise UsageError(
            f"it was tuned on {config.model.base}, and {base.about.place} is another model or in another form: RUN/adapter, "
            "where it is there, can be put on any base"
        )
    decisions = read_decisions(run, config.edits)
    if decisions is None:
        raise ShoestringError(f"{run} lacks what its edits decided, or no checkpoint was written yet")
    _, snapshot = checkpoint.load(folder.checkpoints, step)
    return edit, edit.trained(decisions[-1], snapshot.model)
