"""The same bits for every matrix."""

from shoestring.method import method
from shoestring.quantise.allocation import BitAllocation
from shoestring.quantise.parts import Bits


@method("quantise", kind="bits", name="uniform", claim="the baseline", cost="none")
class Uniform(Bits):
    """Every matrix gets the largest width that all can have within the target."""

    def choose(self, allocation: BitAllocation) -> list[int]:
        """As `Bits.choose`."""
        return [allocation.uniform()] * len(allocation.matrices)
