"""Shares that may be changed while the run goes on, by a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from shoestring.data.mixture import Domain, Shares, shares_of
from shoestring.errors import ShoestringError, UsageError
from shoestring.json_files import is_number, read_json
from shoestring.method import method


@method(
    "data",
    kind="mixture",
    name="online_schedule",
    paper="Nyonic Technical Report, arXiv:2404.15702",
    claim="an Online Data Scheduler supports flexible adjustments of training data and curricula while a run goes on",
    cost="a look at one small file at each held-out evaluation",
)
class OnlineSchedule:
    """Weights are read anew from a JSON file at each held-out evaluation: {"code": 2, "prose": 1}.

    The report describes a scheduler whose sources and shares can be changed in mid-run, and no formula. Here a change is taken
    over at a held-out evaluation, and kept in the state with its place: a run that is resumed goes on with the weights that its
    checkpoint had until the next evaluation. While there is no file, the weights stay as they are.

    file: path of the file, which may be written while the run goes on.
    weights: those to begin with; none given: in proportion to tokens.
    """

    constant: ClassVar[bool] = False

    def __init__(self, domains: Sequence[Domain], *, file: str, weights: Shares | None = None) -> None:
        self._domains, self._file = tuple(domains), Path(file).expanduser()
        self._shares = shares_of(domains, weights)
        self.changes: list[list[Any]] = []

    def weights(self, progress: float) -> np.ndarray:
        return self._shares

    def hear(self, progress: float, losses: Mapping[str, float]) -> None:
        """Look at the file. Raises: ShoestringError where it does not hold weights of the sources."""
        found = read_json(self._file, dict, "an object of weights by source")
        if found is None:
            return
        if not all(is_number(value) and 0 <= value < 1e6 for value in found.values()):
            raise ShoestringError(f"{self._file}: weights are numbers, 0 or more")
        try:
            shares = shares_of(self._domains, found)
        except UsageError as error:
            raise ShoestringError(f"{self._file}: {error}") from None
        if not np.array_equal(shares, self._shares):
            self._shares = shares
            self.changes.append([progress, shares.tolist()])

    def state(self) -> Any:
        return {"shares": self._shares.tolist(), "changes": self.changes}

    def restore(self, state: Any) -> None:
        self._shares, self.changes = np.array(state["shares"], dtype=np.float64), list(state["changes"])
