"""No outer loop: one worker."""

from dataclasses import dataclass

from shoestring.method import method


@method(
    "sync",
    kind="outer loop",
    name="none",
    claim="a worker that trains alone has nothing to wait for",
    cost="none",
)
@dataclass(frozen=True, kw_only=True)
class NoOuterLoop:
    """A worker that exchanges nothing."""
