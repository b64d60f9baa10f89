"""The law of vocabulary size beside the other parameters."""

from torch import Tensor

from shoestring.method import method
from shoestring.plan.formula import Values, coefficient, exponent, signed
from shoestring.plan.law import Law


@method(
    "plan",
    kind="law",
    name="vocabulary",
    paper="Scaling Laws with Vocabulary: Larger Models Deserve Larger Vocabularies, arXiv:2407.13623",
    claim="the best vocabulary grows with compute and with the model, and most models have too small a one",
    cost="sizes, vocabularies and token counts, judged by a loss that vocabularies can share",
)
class Vocabulary(Law):
    """A loss that does not depend on the vocabulary as a measure: L_u = -E + A1 / N_nv^alpha1 + A2 / N_v^alpha2 + B / D^beta.

    Tao et al. (2024), arXiv:2407.13623, approach 3. N_nv: parameters besides the vocabulary's; N_v: those of the vocabulary, V
    d. D: tokens. L_u: loss less that of the unigram distribution, nats per token; it is negative. alpha1 = beta, as there.
    """

    name = "vocabulary"
    formula = "L_u = -E + A1 / N_nv^beta + A2 / N_v^alpha2 + B / D^beta"
    target = "unigram_normalised_loss"
    scale = "linear"

    def __init__(self) -> None:
        self.columns = ("body", "vocabulary_parameters", "tokens")
        self.constants = (
            signed("E", -20.0, 20.0, (4.0, 6.0)),
            coefficient("A1", ("body", "beta", -1), starts=(0.1, 0.5)),
            coefficient("A2", ("vocabulary_parameters", "alpha2", -1), starts=(0.1, 0.5)),
            coefficient("B", ("tokens", "beta", -1), starts=(0.1, 0.5)),
            exponent("alpha2", (0.3, 0.7), centre=None),
            exponent("beta", (0.2, 0.5)),
        )

    def expected(self, constants: Values, row: Values) -> Tensor:
        c = constants
        return (
            c["A1"] * row["body"] ** -c["beta"]
            + c["A2"] * row["vocabulary_parameters"] ** -c["alpha2"]
            + c["B"] * row["tokens"] ** -c["beta"]
            - c["E"]
        )
