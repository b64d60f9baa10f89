"""A packed model is a folder: model.safetensors, the tokenizer's two files, and the ledger of what making it cost."""

from dataclasses import dataclass
from pathlib import Path

from shoestring.config import build, tree
from shoestring.data.tokenizer import TextTokenizer
from shoestring.errors import ShoestringError, UsageError
from shoestring.lowbit import container
from shoestring.model.config import ModelConfig
from shoestring.shrink.packed_transformer import PackedTransformer
from shoestring.train.run_folder import run_and_step

MODEL = "model.safetensors"


@dataclass(frozen=True)
class Packed:
    """A packed model, loaded to be used."""

    model: PackedTransformer
    tokenizer: TextTokenizer


def is_packed(path: Path) -> bool:
    """Whether `path` looks like a packed model's folder, and not like a run's or one of a run's checkpoints."""
    of_a_run = (path / "config.toml").exists() or run_and_step(str(path))[1] is not None
    return (path / MODEL).is_file() and not of_a_run


def save_packed(folder: Path, model: PackedTransformer, tokenizer: TextTokenizer) -> None:
    """Write a model and its tokenizer into `folder`, which may exist; the model comes last, and whole."""
    tokenizer.save(folder)
    container.write(folder / MODEL, model, tree(model.config))


def load_packed(folder: Path) -> Packed:
    """What `save_packed` wrote. Raises: UsageError where it is no such folder, ShoestringError where it is damaged."""
    if not folder.is_dir():
        raise UsageError(f"no such packed model: {folder}")
    path = folder / MODEL
    contents = container.read(path)
    try:
        config = build(ModelConfig, contents.config)
    except (UsageError, OverflowError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise ShoestringError(f"{path} describes no model of this program: {said}") from None
    model = PackedTransformer.of(path, contents, config)
    tokenizer = TextTokenizer.load(folder)
    if tokenizer.vocabulary != config.vocabulary:
        raise ShoestringError(
            f"{folder}: tokenizer and model do not belong together: {tokenizer.vocabulary} and {config.vocabulary} tokens"
        )
    return Packed(model, tokenizer)
