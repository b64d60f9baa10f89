"""What a run that is gone on with may be told: where its files lie now, and nothing else."""

from pathlib import Path

from shoestring.config import Tree, build, merge, tree
from shoestring.data.places import PLACES, is_path
from shoestring.errors import UsageError
from shoestring.train.config import RunConfig
from shoestring.train.origin import absolute
from shoestring.train.run_folder import RunFolder


def resumed_config(folder: RunFolder, moved: Tree) -> RunConfig:
    """The run's configuration, its files where `moved` says. Raises: UsageError where they are not there, or where config.toml
    was edited."""
    config = folder.read_config()
    if moved:
        config = absolute(build(RunConfig, merge(tree(config), moved)))
    places = {key: getattr(config.data, key) for key in PLACES if key != "source"}
    places |= {f"source.{each.name}.corpus": each.corpus for each in config.data.source or ()}
    for key, place in places.items():
        if place is None or not (is_path(place) if key.endswith("corpus") else place not in ("bpe", "bytes")):
            continue
        if not Path(place).expanduser().exists() and not any(sign in place for sign in "*?["):
            raise UsageError(
                f"data.{key} of this run is {place}, which is not there: if it was moved, say where it is with "
                f"--resume {folder.path} --data.{key} PATH"
            )
    return config
