"""Seconds of an operator at its shapes, timed once on this machine and kept in the cache."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch

from shoestring import atomic
from shoestring.budget.machine import Machine, cache_folder, fingerprint, timed
from shoestring.errors import ShoestringError
from shoestring.json_files import is_number, read_json
from shoestring.plan.simulate.trace import Operator

EACH = 0.02
"""Seconds for which an operator is timed, three calls at least."""

MOST = 1.0
"""Seconds from which on an operator is not called again."""


CALL = "a call"
"""The name under which the time is kept that a call takes beside its operator's own."""

CHAIN = 100
"""Operators of the graph by which that is told."""


class OperatorTimes:
    """The look-up table of operators of one machine. device: what they run on. cache: the folder; None: the user's."""

    def __init__(self, device: str = "cpu", *, cache: Path | None = None) -> None:
        self.device = device
        self._path = (cache or cache_folder()) / f"operators-{fingerprint(device)}.json"
        try:
            known = read_json(self._path, dict, "an object") or {}
        except ShoestringError:
            known = {}  # damaged: timed again
        self.known: dict[str, float] = {name: float(value) for name, value in known.items() if is_number(value)}

    @classmethod
    def of(cls, machine: Machine) -> "OperatorTimes":
        return cls(machine.device)

    def missing(self, operators: Iterable[Operator]) -> list[Operator]:
        """Those that were not timed yet."""
        return [one for one in operators if one.name not in self.known]

    def learn(self, operators: Iterable[Operator]) -> int:
        """Time those that were not timed yet, and keep that. Returns how many."""
        new = self.missing(operators)
        if CALL not in self.known:
            self.known[CALL] = self._call()
        for one in new:
            self.known[one.name] = timed(
                one.call(self.device), device=self.device, seconds=EACH, least=3, of=min, most=MOST
            )
        if new:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_text(self._path, json.dumps(self.known, indent=1))
        return len(new)

    def seconds(self, operator: Operator) -> float:
        """Of one call. Raises: KeyError for one that was not timed."""
        return self.known[operator.name]

    @property
    def call(self) -> float:
        """Seconds that a call takes beside its operator's own: Python, and the graph of gradients. Known once any is timed."""
        return self.known[CALL]

    def _call(self) -> float:
        """From a graph of operators on one number, forward and backward, less what they take alone."""
        one = torch.ones(1, device=self.device, requires_grad=True)

        def graph() -> None:
            at = one
            for _ in range(CHAIN):
                at = at * 1.0
            at.backward()

        with torch.no_grad():
            alone = timed(lambda: one * 1.0, device=self.device, seconds=EACH, of=min)
        whole = timed(graph, device=self.device, seconds=5 * EACH, of=min)
        return max(whole / (2 * CHAIN) - alone, 0.0)
