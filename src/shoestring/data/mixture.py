"""The interface of a method of kind 'mixture': the share that each domain has of the sequences, as a run goes on."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from shoestring.config import Pick
from shoestring.errors import UsageError, did_you_mean
from shoestring.method import NonNegative

MIXTURE = Pick("data", "mixture", default="fixed")

Shares = Mapping[str, NonNegative]
"""How much of each domain, by its name; they need not come to 1. A domain that is not named has none."""


class Domain(NamedTuple):
    """A domain as a mixture sees it. tokens: to train on, once."""

    name: str
    tokens: int


class Mixture(Protocol):
    """Says how much of each domain is read. It is made of the domains, in their order, and of its options.

    constant: its weights never change: processes need not tell each other what they heard.
    """

    constant: ClassVar[bool]

    def weights(self, progress: float) -> np.ndarray:
        """float64 [domains]: shares, 0 or more, that come to 1. progress: spent share of the budget, in [0, 1]."""
        ...

    def hear(self, progress: float, losses: Mapping[str, float]) -> None:
        """Told of each held-out evaluation. losses: nats a token, by domain."""
        ...

    def state(self) -> Any:
        """What it remembers, as JSON values: with it, another of the same options goes on exactly."""
        ...

    def restore(self, state: Any) -> None:
        """Go on from what `state` gave."""
        ...


class Unmoved:
    """A mixture that remembers nothing: what it says depends on progress alone."""

    constant: ClassVar[bool] = False

    def hear(self, progress: float, losses: Mapping[str, float]) -> None:
        """It does not listen."""

    def state(self) -> Any:
        return None

    def restore(self, state: Any) -> None:
        """It has nothing to restore."""


def shares_of(domains: Sequence[Domain], given: Shares | None, what: str = "weights") -> np.ndarray:
    """float64 [domains] that come to 1: as given, or in proportion to tokens where nothing is.

    what: the option, for the message. Raises: UsageError where a domain is not known, or all have none.
    """
    if given is None:
        found = np.array([float(domain.tokens) for domain in domains])
    else:
        names = [domain.name for domain in domains]
        for name in given:
            if name not in names:
                raise UsageError(f"mixture: {what} of '{name}', which is no source: {did_you_mean(name, names)}")
        found = np.array([float(given.get(name, 0.0)) for name in names])
    if not found.sum() > 0:
        raise UsageError(f"mixture: {what} must be above 0 for one source at least")
    return found / found.sum()
