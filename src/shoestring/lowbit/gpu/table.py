"""The settings that tuning found, kept in a file of the user's cache folder, for each GPU and version of Triton."""

import importlib.metadata
import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from shoestring import atomic
from shoestring.budget.machine import cache_folder
from shoestring.errors import ShoestringError
from shoestring.lowbit.gpu.config import Config, token_block

VERSION = 1
"""Of the kernels: settings found for others are not used."""


@dataclass(frozen=True)
class Key:
    """What settings are found for: a matrix, the tokens that its kernel is handed, and the bits of a weight."""

    rows: int
    columns: int
    groups: int
    tokens: int
    bits: int = 2

    @property
    def name(self) -> str:
        """One token has settings of its own; other numbers share those of the block they fill up."""
        tokens = 1 if self.tokens == 1 else token_block(self.tokens)
        return f"{self.bits} bits, {self.rows}x{self.columns}, groups {self.groups}, tokens {tokens}"


Table = dict[str, dict[str, Config]]

_kept: tuple[Path, Table] | None = None


def path() -> Path:
    return cache_folder() / "gpu-kernels.json"


def tuned(gpu: str, key: Key) -> Config | None:
    """What was found for this product on that GPU; None where it was not tuned."""
    return _read().get(_section(gpu), {}).get(key.name)


def keep(gpu: str, found: dict[Key, Config]) -> None:
    """Add what tuning found to the file."""
    global _kept
    table = _read()
    section = table.setdefault(_section(gpu), {})
    section.update({key.name: config for key, config in found.items()})
    plain = {gpu: {name: asdict(config) for name, config in entries.items()} for gpu, entries in table.items()}
    atomic.write_text(path(), json.dumps(plain, indent=1, sort_keys=True) + "\n")
    _kept = path(), table


def _section(gpu: str) -> str:
    return f"{gpu}, Triton {importlib.metadata.version('triton')}, kernels {VERSION}"


def _read() -> Table:
    """The file, read once for each place it is in; a damaged one is said to be so and left unused."""
    global _kept
    if _kept is None or _kept[0] != path():
        table: Table = {}
        try:
            plain = json.loads(path().read_text())
            table = {gpu: {name: Config(**one) for name, one in entries.items()} for gpu, entries in plain.items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, AttributeError, ShoestringError) as error:
            table = {}
            warnings.warn(
                f"{path()} is not a table of GPU settings, and is not used: {error}", RuntimeWarning, stacklevel=4
            )
        _kept = path(), table
    return _kept[1]
