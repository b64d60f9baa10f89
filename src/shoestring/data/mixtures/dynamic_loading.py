"""Domains that lag behind a reference are read more."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Interval

from shoestring.data.mixture import Domain, Shares, shares_of
from shoestring.errors import UsageError
from shoestring.method import Positive, method


@method(
    "data",
    kind="mixture",
    name="dynamic_loading",
    paper="Sheared LLaMA: Accelerating Language Model Pre-training via Structured Pruning, arXiv:2310.06694",
    claim="after pruning, it evens out the recovery of domains and improves downstream performance over the original shares",
    cost="a held-out evaluation of each domain whenever the weights are to change: lower train.evaluate_every",
)
class DynamicLoading:
    """Multiplies the weight of each domain by the exponential of how far its held-out loss is above a reference.

    w_t = alpha / sum(alpha), alpha_i = w_{t-1, i} exp(Delta_i), Delta_i = max(l_t,i - l_ref,i, 0), at each held-out evaluation.
    l_t,i: loss of domain i, nats a token. The paper takes l_ref from a scaling law of the source models, every 50 or 400 steps.

    reference: l_ref of each source, in nats a token.
    weights: those to begin with; none given: in proportion to tokens.
    rate: multiplies Delta; the paper's is 1.
    """

    constant: ClassVar[bool] = False

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        reference: Mapping[str, Annotated[float, Interval(ge=0, le=100)]],
        weights: Shares | None = None,
        rate: Positive = 1.0,
    ) -> None:
        missing = [domain.name for domain in domains if domain.name not in reference]
        if missing:
            raise UsageError(f"dynamic_loading: reference needs a loss for '{missing[0]}'")
        shares_of(domains, dict.fromkeys(reference, 1.0), "reference")  # refuses names that are no sources
        self._names = [domain.name for domain in domains]
        self._reference = np.array([reference[name] for name in self._names])
        self._rate, self._shares = rate, shares_of(domains, weights)

    def weights(self, progress: float) -> np.ndarray:
        return self._shares

    def hear(self, progress: float, losses: Mapping[str, float]) -> None:
        found = np.array([losses.get(name, np.nan) for name in self._names])
        behind = np.maximum(
            np.nan_to_num(found - self._reference, nan=0.0), 0.0
        )  # one that was not read stays as it is
        grown = self._shares * np.exp(self._rate * (behind - behind.max()))
        self._shares = grown / grown.sum()

    def state(self) -> Any:
        return self._shares.tolist()

    def restore(self, state: Any) -> None:
        self._shares = np.array(state, dtype=np.float64)
