"""No number format: full precision."""

from dataclasses import dataclass

from shoestring.method import method


@method("lowbit", kind="format", name="none", claim="the baseline", cost="none")
@dataclass(frozen=True, kw_only=True)
class FullPrecision:
    """Weights as they are trained: nothing is quantised."""
