"""The model of a run as its newest checkpoint has it, for those who want one tensor after the other and never the whole."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from shoestring.base.opened import Opened, Provenance
from shoestring.errors import ShoestringError
from shoestring.model.outline import outline
from shoestring.model.transformer import Transformer
from shoestring.parallel.stored_tensors import StoredTensors
from shoestring.train import checkpoint
from shoestring.train.run_folder import RUN, RunFolder, run_and_step
from shoestring.train.trained import digest_of_run


def stored_run(place: str) -> tuple[Opened, Mapping[str, Tensor]] | None:
    """(the model of a run as an outline, without numbers; its weights by name, each read when it is asked for).

    place: a run's folder, or that of one of its checkpoints. None where that is no run, or its model is more than its weights: of a
    run on a base, or with edits.
    Raises: UsageError, ShoestringError where it is damaged.
    """
    path, step = run_and_step(place)
    if not (Path(place).is_dir() and RUN.begun(path)):
        return None
    folder = RunFolder.open(path)
    config = folder.read_config()
    if config.model.base or config.edits:
        return None
    found, snapshot = checkpoint.load(folder.checkpoints, step)
    with outline():
        model = Transformer(config.model)
    assert isinstance(snapshot.model, StoredTensors)
    shapes = {name: tuple(own.shape) for name, own in model.state_dict().items()}
    if shapes != {name: one.shape for name, one in snapshot.model.stored.items()}:
        raise ShoestringError(f"{path}: the weights of step {found} are not of the model that config.toml describes")
    tokenizer = folder.read_tokenizer()
    about = Provenance(
        str(Path(place).absolute()), "run", digest_of_run(folder, found), chat_template=tokenizer.chat_template
    )
    return Opened(model.eval(), tokenizer, about), snapshot.model
