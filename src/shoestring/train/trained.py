"""A trained run, loaded to be used."""

from dataclasses import dataclass
from pathlib import Path

from shoestring.contract.edit import Evidence
from shoestring.contract.model import LanguageModule
from shoestring.data.tokenizer import TextTokenizer
from shoestring.digests import digest_of
from shoestring.errors import ShoestringError, UsageError
from shoestring.model.transformer import Transformer
from shoestring.train import checkpoint
from shoestring.train.assembly import planned_tokens
from shoestring.train.base import build_model, put_weights, with_frozen
from shoestring.train.config import RunConfig
from shoestring.train.edits import FOLDER, Applied, apply_edits, join_schedule, needs, read_decisions
from shoestring.train.run_folder import RunFolder


@dataclass(frozen=True)
class Trained:
    """A run's model, to be used.

    model: float32, in evaluation mode, on the CPU; where the run trained for a number format, its layers hold the latent weights
    and compute with the quantised ones.
    tokenizer: the run's own copy.
    step: of the checkpoint.
    applied: the edits of the model.
    digest: of the weights, the configuration and what the edits decided.
    quantised: its weights were quantised in training by then; False for a run in full precision, or one that had not begun to.
    """

    config: RunConfig
    model: LanguageModule
    tokenizer: TextTokenizer
    step: int
    applied: tuple[Applied, ...]
    quantised: bool
    digest: str

    @property
    def native(self) -> Transformer:
        """The model where it is this program's own. Raises: UsageError for a wrapped one."""
        if not isinstance(self.model, Transformer):
            raise UsageError(
                f"{self.config.model.base} is of a family that is only wrapped here: this works on native models"
            )
        return self.model


def load_trained(path: Path, step: int | None = None) -> Trained:
    """The model of a run's newest checkpoint, or the one of `step`. Raises: UsageError, ShoestringError."""
    folder = RunFolder.open(path)
    config = folder.read_config()
    found, snapshot = checkpoint.load(folder.checkpoints, step)
    decisions = read_decisions(path, config.edits)
    if decisions is None and needs(config.edits):
        raise ShoestringError(f"{path} lacks what its edits decided: they cannot be applied again without text")
    edited, applied = apply_edits(build_model(config.model), config.edits, Evidence(config.seed), decisions)
    try:
        put_weights(edited, with_frozen(edited, snapshot.model, config))
    except RuntimeError:
        raise ShoestringError(
            f"{path}: the weights of step {found} are not of the model that config.toml describes"
        ) from None
    edited.changed()
    _, switches, _ = join_schedule(config.schedule.build(), applied, edited, planned_tokens(config, edited))
    progress = snapshot.state["position"]["progress"]
    quantised = bool(switches) and all(progress >= switch.start for switch in switches)
    return Trained(
        config, edited.eval(), folder.read_tokenizer(), found, tuple(applied), quantised, digest_of_run(folder, found)
    )


def digest_of_run(folder: RunFolder, step: int) -> str:
    """Of the weights of a step, the configuration and what the edits decided."""
    weights = checkpoint.weight_files(folder.checkpoints, step)
    return digest_of([folder.path / "config.toml", *weights, *sorted((folder.path / FOLDER).glob("*"))])
