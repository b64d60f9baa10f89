"""A trained run, loaded to be used."""

from dataclasses import dataclass
from pathlib import Path

from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import ShoestringError
from shoestring.model.transformer import Transformer
from shoestring.train import checkpoint
from shoestring.train.config import RunConfig
from shoestring.train.lowering import join_schedule, lower_model
from shoestring.train.run_folder import RunFolder


@dataclass(frozen=True)
class Trained:
    """model: float32, in evaluation mode, on the CPU; where the run trained for a number format, its lowered layers hold the
    latent weights and compute with the quantised ones. tokenizer: the run's own copy. step: of the checkpoint. quantised: its
    weights were quantised in training by then; False for a run in full precision, or one that had not begun to quantise."""

    config: RunConfig
    model: Transformer
    tokenizer: TextTokenizer
    step: int
    quantised: bool


def load_trained(path: Path, step: int | None = None) -> Trained:
    """The model of a run's newest checkpoint, or the one of `step`. Raises: UsageError, ShoestringError."""
    folder = RunFolder.open(path)
    config = folder.read_config()
    found, snapshot = checkpoint.load(folder.checkpoints, step)
    model = Transformer(config.model)
    lower_model(config, model)
    try:
        model.load_state_dict(snapshot.model)
    except RuntimeError:
        raise ShoestringError(
            f"{path}: the weights of step {found} are not of the model that config.toml describes"
        ) from None
    start = join_schedule(config, model)[1]
    quantised = config.lowbit.on and snapshot.state["position"]["progress"] >= start
    return Trained(config, model.eval(), folder.read_tokenizer(), found, quantised)
