"""muP for Adam, with weight decay that keeps the gain of a layer at every width."""

from dataclasses import dataclass
from typing import ClassVar

from shoestring.method import Count, NonNegative, method
from shoestring.schedule.transfer.rule import RoleRule, Rules, Scale


@method(
    "schedule",
    kind="transfer",
    name="mup",
    paper="Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer, arXiv:2203.03466; "
    "Robust Layerwise Scaling Rules by Proper Weight Decay Tuning, arXiv:2510.15262",
    claim="learning rate and weight decay transfer from a proxy to target widths without sweeps; LLaMA-style "
    "Transformers, AdamW",
    cost="one product with the final hidden states",
)
@dataclass(frozen=True, kw_only=True)
class MuP:
    """The maximal update parametrisation for AdamW over width d, and weight decay with it.

    Yang et al. (2022), arXiv:2203.03466, table 8, the form for tied embeddings; Fan et al. (2025), arXiv:2510.15262.
    With m = d / base_width, factors on the base recipe:

        matrices               learning rate 1/m, weight decay m^decay_exponent, first weights 1
        embedding and head     learning rate 1, weight decay 1, first weights sqrt(m)
        gains and biases       learning rate 1, weight decay 1, first weights 1
        logits                 1/m

    First weights are relative to `model.initialise`: a block's matrices have standard deviation 1 / sqrt(fan-in) there,
    which is muP's, or are zero, which muP allows; embedding and head have 1 / (2 sqrt(d)), which sqrt(m) makes the same
    at every width, as muP has it for what maps from or to the vocabulary. An untied head has the same rule as a tied
    one. muP's 1/d on attention scores replaces 1 / sqrt(d) where heads grow wider; at a head width that does not change
    they are the same up to a constant, so grow the number of heads and keep their width.

    decay_exponent: 0.5 is the rule of Fan et al., whose observation is that the top singular value of a matrix settles
    near sqrt(lr / decay) d^0.75, so that 1/m and sqrt(m) keep it; 0 is plain muP; 1 keeps lr x decay. The decay is
    AdamW's, w <- (1 - lr decay) w. Depth and tokens are left alone. Both papers have Adam; that the rates
    hold for the others of `optimizers`, which also give all entries of a matrix steps of about one size, is our reading.

    Differs: Fan et al. train what maps to and from the vocabulary without weight decay; here it keeps the base recipe's.

    base_width: the width that the recipe's rates suit.
    """

    optimizers: ClassVar[frozenset[str]] = frozenset({"adamw", "adam_mini", "lion", "opt_amsgrad"})

    base_width: Count = 256
    decay_exponent: NonNegative = 0.5

    def __call__(self, scale: Scale) -> Rules:
        wider = scale.width / self.base_width
        vocabulary = RoleRule(initial=wider**0.5)
        return Rules(
            embedding=vocabulary,
            head=vocabulary,
            matrix=RoleRule(lr=1 / wider, weight_decay=wider**self.decay_exponent),
            output=1 / wider,
        )
