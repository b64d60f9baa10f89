"""More bits for the matrices that rounding spoils most, by their weights alone."""

from shoestring.method import method
from shoestring.quantise.allocation import BitAllocation
from shoestring.quantise.parts import Bits


@method(
    "quantise",
    kind="bits",
    name="selective_rtn",
    paper="Is (Selective) Round-To-Nearest Quantization All You Need?, arXiv:2505.15909",
    claim="accuracy improves gradually as certain layers and modules get more bits, at throughput better than advanced methods",
    cost="every matrix rounded once at each width; no text",
)
class SelectiveRTN(Bits):
    """Begin with the widest uniform codes that fit, and raise one matrix after another while something fits.

    The first to go up is that whose error falls most for what it takes.
    The study behind it (arXiv:2505.15909) raises the precision of layers and modules that were found to matter. Here, of all
    matrices m and next widths b' > b, the one goes up that has the largest

        (e_mb - e_mb') n_m / (c_mb' - c_mb),    e_mb = |W - W~|^2 / |W|^2 to the nearest at b bits, n_m its weights,

    until none fits any more. c: what a width takes of the target. No text is looked at.
    """

    def choose(self, allocation: BitAllocation) -> list[int]:
        """As `Bits.choose`."""
        widths, errors = allocation.widths, allocation.errors
        at = [0] * len(allocation.matrices)
        fits = [place for place, bits in enumerate(widths) if allocation.fits([bits] * len(at))]
        at = [max(fits, default=0)] * len(at)
        left = allocation.limit * (1 + 1e-9) - allocation.cost([widths[place] for place in at])
        while True:
            best, gain = -1, 0.0
            for matrix, place in enumerate(at):
                if place + 1 == len(widths):
                    continue
                more = allocation.costs[matrix][place + 1] - allocation.costs[matrix][place]
                less = (errors[matrix][place] - errors[matrix][place + 1]) * allocation.matrices[matrix].weight.numel()
                if more <= left and less / max(more, 1e-30) > gain:
                    best, gain = matrix, less / max(more, 1e-30)
            if best < 0:
                return [widths[place] for place in at]
            left -= allocation.costs[best][at[best] + 1] - allocation.costs[best][at[best]]
            at[best] += 1
