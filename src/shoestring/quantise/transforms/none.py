"""No transform."""

from shoestring.method import method
from shoestring.quantise.parts import Transform


@method("quantise", kind="transform", name="none", claim="the baseline", cost="none")
class Untransformed(Transform):
    """The weights are rounded as they are."""
