"""A share of what the model was trained on before, beside what is new."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Interval

from shoestring.data.mixture import Domain, Shares, shares_of
from shoestring.errors import UsageError
from shoestring.method import NonNegative, method


@method(
    "data",
    kind="mixture",
    name="replay",
    paper="Efficient Continual Pre-training by Mitigating the Stability Gap, arXiv:2406.14833",
    claim="several epochs of a subset of proper size, its best part, and a mixture near the original one shorten the drop at the "
    "beginning: medical performance of OpenLlama-3B rises from 36.2 % to 40.7 % with 40 % of the budget",
    cost="held-out evaluations, where `recover` is used",
)
class Replay:
    """New domains share what old ones leave: old domains have the weight `share`, split among them as they were before.

    The paper's third strategy. Its first two are of what is read: a subset of proper size, read for several epochs, and the best
    part of it, are made by `shoestring data`; as sources are read again when they end, a small one has several epochs.
    With `recover`, the old domains' weight is doubled (to 1 / 2 at most) while the mean of their held-out losses is more than
    `recover` nats above what it was at the first evaluation: the drop that is called the stability gap.

    old: the sources that are like what the model was trained on.
    share: of the old sources together.
    weights: of the sources within old and new, each; none given: in proportion to tokens.
    recover: nats; 0: the share is constant.
    """

    constant: ClassVar[bool] = False

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        old: tuple[str, ...],
        share: Annotated[float, Interval(ge=0, le=1)] = 0.25,
        weights: Shares | None = None,
        recover: NonNegative = 0.0,
    ) -> None:
        names = [domain.name for domain in domains]
        shares_of(domains, dict.fromkeys(old, 1.0), "old")  # refuses names that are no sources
        if len(set(old)) == len(names):
            raise UsageError("replay: all sources are old: one at least is new")
        self._names, self._old = names, np.array([name in old for name in names])
        whole = shares_of(domains, weights)
        parts = [whole * self._old, whole * ~self._old]
        if not all(part.sum() > 0 for part in parts):
            raise UsageError("replay: old sources and new ones need a weight above 0 each")
        self._parts = [part / part.sum() for part in parts]
        self._share, self._recover = share, recover
        self._first: float | None = None
        self._behind = False

    def weights(self, progress: float) -> np.ndarray:
        share = self._share if not self._behind else max(self._share, min(2 * self._share, 0.5))
        return share * self._parts[0] + (1 - share) * self._parts[1]

    def hear(self, progress: float, losses: Mapping[str, float]) -> None:
        heard = [losses[name] for name, old in zip(self._names, self._old, strict=True) if old and name in losses]
        if not heard or not self._recover:
            return
        mean = float(np.mean(heard))
        if self._first is None:
            self._first = mean
        self._behind = mean > self._first + self._recover

    def state(self) -> Any:
        return {"first": self._first, "behind": self._behind}

    def restore(self, state: Any) -> None:
        self._first, self._behind = state["first"], bool(state["behind"])
