"""Where data lies: the keys of [data] that say so, and the same places named so that they hold in any folder."""

from dataclasses import replace
from pathlib import Path

from shoestring.data.config import DataConfig
from shoestring.method import methods

PLACES = ("corpus", "tokenizer", "documents", "source")
"""Keys of [data] that say where something lies: the same content may lie elsewhere on another machine, and is known by its
fingerprint."""


def absolute_path(path: str) -> str:
    """A path that holds in any working folder. Symbolic links stay as they are."""
    return str(Path(path).expanduser().absolute())


def is_path(corpus: str) -> bool:
    """Whether a corpus is named by a path or a glob, and not by the name of a corpus: 'python-stdlib', 'hf:NAME'."""
    return bool(corpus) and corpus.partition(":")[0] not in {card.name for card in methods("data", "corpus")}


def absolute_corpus(corpus: str) -> str:
    """A corpus as a configuration names it, its path absolute where it is one."""
    return absolute_path(corpus) if is_path(corpus) else corpus


def absolute_data(config: DataConfig) -> DataConfig:
    """The same data, its files named by absolute paths."""
    return replace(
        config,
        corpus=absolute_corpus(config.corpus),
        tokenizer=config.tokenizer if config.tokenizer in ("bpe", "bytes") else absolute_path(config.tokenizer),
        source=config.source and tuple(replace(each, corpus=absolute_corpus(each.corpus)) for each in config.source),
        documents=None if config.documents is None else absolute_path(config.documents),
    )
