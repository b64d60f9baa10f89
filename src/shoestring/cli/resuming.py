"""What a run that is gone on with may be told: where its files lie now, and nothing else."""

from collections.abc import Sequence
from pathlib import Path

from shoestring.cli.planning import forbid
from shoestring.config import Tree, build, merge, overrides, tree
from shoestring.data.places import PLACES, is_path
from shoestring.errors import UsageError
from shoestring.train.config import RunConfig
from shoestring.train.origin import MOVABLE, absolute
from shoestring.train.run_folder import RunFolder


def moved_places(words: Sequence[str]) -> Tree:
    """The places that flags name, as in --data.corpus PATH. Raises: UsageError for any other flag."""
    asked = overrides(words)
    for word in words:
        if word.startswith("--") and word[2:].partition("=")[0].replace("-", "_") not in MOVABLE:
            forbid(
                [word],
                "a resumed run keeps its configuration, its number of workers too (--data.corpus PATH says where its text lies "
                "now); --start.run RUN, without --resume, begins a new one from its weights",
            )
    return asked


def resumed_config(folder: RunFolder, moved: Tree) -> RunConfig:
    """The run's configuration, its files where `moved` says. Raises: UsageError where they are not there, or where config.toml
    was edited."""
    config = folder.read_config()
    if moved:
        config = absolute(build(RunConfig, merge(tree(config), moved)))
    for key in PLACES:
        place = getattr(config.data, key)
        if place is None or not (is_path(place) if key == "corpus" else place not in ("bpe", "bytes")):
            continue
        if not Path(place).expanduser().exists() and not any(sign in place for sign in "*?["):
            raise UsageError(
                f"data.{key} of this run is {place}, which is not there: if it was moved, say where it is with "
                f"--resume {folder.path} --data.{key} PATH"
            )
    return config
