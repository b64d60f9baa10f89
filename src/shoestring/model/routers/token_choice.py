"""Token choice: each token goes to the experts that it scores highest."""

from torch import Tensor

from shoestring.method import Count, NonNegative, method
from shoestring.model.balance import Balance, Scope, Sum
from shoestring.model.routing import Router, Routing, by_expert, losses


@method(
    "model",
    kind="router",
    name="token_choice",
    paper="Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer, arXiv:1701.06538; "
    "ST-MoE: Designing Stable and Transferable Sparse Expert Models, arXiv:2202.08906; "
    "Demons in the Detail: On Implementing Load Balancing Loss for Training Specialized Mixture-of-Expert Models, "
    "arXiv:2501.11873",
    claim="over 1000x more capacity with minor losses of computational efficiency; the z-loss makes training stable without "
    "loss of quality; balance over the global batch improves perplexity and how far experts specialise, at up to 42.8B parameters",
    cost="a width x experts product and a sort a token; with balance over workers, 8 bytes an expert, layer and micro-batch",
)
class TokenChoice(Router):
    """The `active` experts of highest probability take a token; nothing is dropped.

    Noam Shazeer et al., 2017, arXiv:1701.06538; z-loss: Barret Zoph et al., 2022, arXiv:2202.08906; balance: William Fedus et al.,
    2021, arXiv:2101.03961; its scope: Zihan Qiu et al., 2025, arXiv:2501.11873.

    p = softmax(W x) [N, E]; y = sum of p_e expert_e(x) over the top `active`, the p_e made to add up to 1 where `normalised`.
    Terms of the loss: balance E sum_e f_e p_e, and z mean(logsumexp² W x).

    Different from the papers: no noise, no capacity, so no token is dropped.

    active: experts of each token.
    normalised: whether the weights of a token's experts are made to add up to 1.
    balance, z: coefficients of the terms.
    scope: over which tokens f_e is: 'micro_batch': of the pass; 'batch': of the step's micro-batches so far; 'workers': and of all
    processes that share a step. Workers that train apart and exchange now and then (`[sync]`) balance each its own batch.
    """

    def __init__(
        self,
        width: int,
        experts: int,
        *,
        active: Count = 2,
        normalised: bool = True,
        balance: NonNegative = 0.01,
        z: NonNegative = 0.001,
        scope: Scope = "micro_batch",
    ) -> None:
        super().__init__(width, experts)
        if active > experts:
            raise ValueError(f"active = {active} experts of each token cannot be more than the {experts} there are")
        self.active, self.normalised, self.balance, self.z = active, normalised, balance, z
        self.balancing = Balance(experts, scope)

    def begin_part(self, part: int, over_workers: Sum | None) -> None:
        """As `model.block` says."""
        self.balancing.begin(part, over_workers)

    def resize(self, experts: int) -> None:
        """As `Router.resize`."""
        super().resize(experts)
        self.balancing.experts = experts

    def forward(self, x: Tensor) -> Routing:
        logits = self.gate(x).flatten(0, -2)
        shares = logits.softmax(-1)
        weights, chosen = shares.topk(int(self.active), -1)
        if self.normalised:
            weights = weights / weights.sum(-1, keepdim=True)
        terms = losses(self.balancing(shares, chosen), logits, self.balance, self.z)
        return by_expert(chosen, weights, self.experts, terms)
