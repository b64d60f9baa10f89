"""HyperP: transfer over width, depth and tokens for Muon on the Frobenius sphere."""

from dataclasses import dataclass
from typing import ClassVar

from shoestring.errors import UsageError
from shoestring.method import Count, NonNegative, Tokens, method
from shoestring.schedule.transfer.rule import RoleRule, Rules, Scale


@method(
    "schedule",
    kind="transfer",
    name="hyperp",
    paper="Rethinking Language Model Scaling under Transferable Hypersphere Optimization, arXiv:2603.28743",
    claim="one base rate, tuned at the smallest scale, transfers over width, depth, tokens and expert granularity; "
    "1.58 times a strong Muon baseline's compute efficiency at 6e21 FLOPs",
    cost="one product each with the embedded and the final hidden states",
)
@dataclass(frozen=True, kw_only=True)
class HyperP:
    """Hypersphere parametrisation: rules for matrices that `muon_hypersphere` holds at a fixed Frobenius norm.

    Ren et al. (2026), arXiv:2603.28743. For width d, depth L and T training tokens:

        every learning rate    sqrt(base_depth / L) (T / base_tokens)^-0.32
        residual branches      sqrt(base_depth / L)
        matrices over width    nothing: a step is a share of a norm that grows as sqrt(d_out), so outputs keep their scale
        embedding and head     first weights sqrt(d / base_width); logits base_width / d

    Depth: the paper's Depth-muP; 1 / sqrt(2 L) on each branch and lr ~ 1 / sqrt(L). Tokens: the exponent is the one that
    Bjorck et al. (2024), arXiv:2409.19913, found for AdamW. Weight decay: on the sphere it changes nothing to first
    order (their theorem 1), so its factor is 1 and `muon_hypersphere` has none by default.

    base_tokens: 0 = leave tokens out of it. Mixtures of experts have further rules, which are not here.

    Differs: the paper's untied head is itself held on a sphere, by an Adam with normalised steps. Embedding and head
    here are AdamW's and have muP's rule (see `mup`), so that they transfer where they are one matrix too.

    base_width: the width that the recipe's rates suit.
    base_depth: the layers that the recipe's rates suit.
    token_exponent: how fast the rates fall with the tokens.
    Raises: UsageError where base_tokens is given and the run's tokens are not known.
    """

    optimizers: ClassVar[frozenset[str]] = frozenset({"muon_hypersphere"})

    base_width: Count = 256
    base_depth: Count = 6
    base_tokens: Tokens = 0.0
    token_exponent: NonNegative = 0.32

    def __call__(self, scale: Scale) -> Rules:
        if self.base_tokens and not scale.tokens:
            raise UsageError("hyperp has base_tokens, but how many tokens this run trains on is not known: set it to 0")
        longer = scale.tokens / self.base_tokens if self.base_tokens else 1.0
        wider, shallower = scale.width / self.base_width, (self.base_depth / scale.depth) ** 0.5
        rate = shallower * longer**-self.token_exponent
        vocabulary = RoleRule(lr=rate, initial=wider**0.5)
        return Rules(
            embedding=vocabulary,
            head=vocabulary,
            matrix=RoleRule(lr=rate),
            vector=RoleRule(lr=rate),
            output=1 / wider,
            residual=shallower,
        )
