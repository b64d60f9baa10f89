"""The adapters of a run as a folder that peft reads, and `open_model` too."""

from pathlib import Path

from shoestring.base.adapters import save_adapter
from shoestring.errors import UsageError
from shoestring.train.trained import Trained
from shoestring.tune.adapter_edit import AdapterEdit


def export_adapter(trained: Trained, folder: Path) -> int:
    """Write the adapters of a run. Returns how many bytes they take.

    Raises: UsageError where the run has none, has other edits below them, or peft knows none of their kind.
    """
    if not trained.applied or not isinstance(trained.applied[-1].edit, AdapterEdit):
        raise UsageError("this run trained no adapters: export it to transformers or gguf")
    others = [one.name for one in trained.applied[:-1]]
    if others:
        raise UsageError(
            f"its adapters are of a model with {', '.join(others)}, which has no name: export it to transformers"
        )
    base = trained.config.model.base
    if not base:
        raise UsageError("its adapters are of a model that was drawn at random: they are of no use without it")
    last = trained.applied[-1]
    assert isinstance(last.edit, AdapterEdit)
    save_adapter(folder, trained.model, last.edit, last.decision.values, base)
    return sum(file.stat().st_size for file in folder.iterdir())
