"""The law of quantisation-aware training after training at full precision."""

from torch import Tensor

from shoestring.method import method
from shoestring.plan.formula import LawConstant, Values, coefficient, exponent, floor
from shoestring.plan.law import Law


@method(
    "plan",
    kind="law",
    name="quantisation_aware",
    paper="Compute-Optimal Quantization-Aware Training, arXiv:2509.22935",
    claim="the best share of quantisation-aware training grows with compute, and follows from tokens per parameter byte",
    cost="sizes, token counts and shares of quantised training, at two bit widths or more",
)
class QuantisationAware(Law):
    """The loss of N parameters of `bits` bits, D_fp tokens at full precision and then D_qat tokens quantised.

        L = E + B / D^beta + A / N^alpha + theta 2^(-kappa bits) + phi 2^(-chi bits) / (N^psi S_qat^omega)
            + lam 2^(-mu bits) / (N^nu S_fp^xi S_qat^rho),    S = D / (N bits / 8),    D = D_fp + D_qat

    Dremov et al. (2025), arXiv:2509.22935. S: tokens per parameter byte. The first three terms are Chinchilla's, the fourth is
    what quantisation costs for good, the others are what too few quantised tokens cost. L: nats per token.
    Differs: the two terms of too few tokens share their exponents of size and bits, so that a few dozen runs determine them.
    """

    name = "quantisation_aware"
    formula = "L = E + B / D^beta + A / N^alpha + 2^(-kappa bits) (theta + (phi + lam / S_fp^xi) / (N^psi S_qat^omega))"

    def __init__(self) -> None:
        self.columns = ("parameters", "full_tokens", "quantised_tokens", "bits")
        self.constants = (
            floor(),
            coefficient("A", ("parameters", "alpha", -1)),
            coefficient("B", ("full_tokens", "beta", -1)),
            exponent("alpha", (0.35,)),
            exponent("beta", (0.35,)),
            LawConstant("kappa", 0.01, 5.0, (0.3, 1.0)),
            LawConstant("theta", 1e-4, 1e3, (0.3,)),
            coefficient("phi", ("parameters", "psi", -1), starts=(0.1,)),
            coefficient("lam", ("parameters", "psi", -1), starts=(0.1,)),
            exponent("psi", (0.1,), centre=None),
            exponent("omega", (0.3,), centre=None),
            exponent("xi", (0.3,), centre=None),
        )

    def expected(self, constants: Values, row: Values) -> Tensor:
        c, size, bits = constants, row["parameters"], row["bits"]
        full, quantised = row["full_tokens"], row["quantised_tokens"]
        dense = c["E"] + c["A"] * size ** -c["alpha"] + c["B"] * (full + quantised) ** -c["beta"]
        bytes_ = size * bits / 8
        short = (c["phi"] + c["lam"] * (full / bytes_) ** -c["xi"]) * size ** -c["psi"]
        return dense + (-c["kappa"] * bits).exp2() * (c["theta"] + short * (quantised / bytes_) ** -c["omega"])
