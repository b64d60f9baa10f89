"""Sinkhorn routing: tokens are assigned so that all experts have about as many."""

import torch
from torch import Tensor

from shoestring.method import Count, Iterations, NonNegative, Positive, method
from shoestring.model.routing import Router, Routing, by_expert, losses


@method(
    "model",
    kind="router",
    name="sinkhorn",
    paper="Unified Scaling Laws for Routed Language Models, arXiv:2202.01169; "
    "Continual Pre-training of MoEs: How robust is your router?, arXiv:2503.05029",
    claim="balances experts without a term of the loss; routers by Sinkhorn and by z-and-auxiliary losses are both robust to "
    "continual pre-training",
    cost="token choice, and a few sums over [tokens, experts] while training",
)
class Sinkhorn(Router):
    """While training, experts are chosen from scores that were balanced over the tokens of the pass; else from the scores.

    Aidan Clark et al., 2022, arXiv:2202.01169.

    While training: P = exp(W x / temperature) [N, E] is scaled, rows to 1 and columns to N / E in turn, `iterations` times; the
    top `active` of P take a token. An expert's output is multiplied by sigmoid(W x)_e, through which the router learns.
    Without training the scores W x choose, as the other tokens of a text that is decoded are not there yet.

    Different from the paper: a fixed number of iterations, in place of a tolerance.

    active: experts of each token.
    iterations: of the scaling of rows and columns.
    temperature: of the scores that are balanced.
    z: coefficient of the z-loss.
    """

    looks_ahead = True

    def __init__(
        self,
        width: int,
        experts: int,
        *,
        active: Count = 1,
        iterations: Iterations = 8,
        temperature: Positive = 1.0,
        z: NonNegative = 0.0,
    ) -> None:
        super().__init__(width, experts)
        if active > experts:
            raise ValueError(f"active = {active} experts of each token cannot be more than the {experts} there are")
        self.active, self.iterations, self.temperature, self.z = active, iterations, temperature, z

    def forward(self, x: Tensor) -> Routing:
        logits = self.gate(x).flatten(0, -2)
        with torch.no_grad():
            plan = self.balanced(logits) if self.training else logits
        chosen = plan.topk(int(self.active), -1).indices
        return by_expert(chosen, logits.sigmoid().gather(1, chosen), self.experts, losses(None, logits, 0, self.z))

    def balanced(self, logits: Tensor) -> Tensor:
        """The logarithm of P, [N, E]: columns alike, then rows that add up to 1."""
        plan = logits / self.temperature
        share = torch.tensor(len(plan) / self.experts).log().to(plan)
        for _ in range(self.iterations):
            plan = plan - plan.logsumexp(0, keepdim=True) + share
            plan = plan - plan.logsumexp(1, keepdim=True)
        return plan
