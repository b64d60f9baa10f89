"""One router for all layers: it chooses before they are computed, so that their experts can be fetched."""

import torch
from torch import Tensor, nn

from shoestring.contract.cost import Shape
from shoestring.method import NonNegative, method
from shoestring.model.balance import Balance, Scope, Sum
from shoestring.model.routing import Router, Routing, by_expert, losses


@method(
    "model",
    kind="router",
    name="pre_gate",
    paper="Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts with System Co-Design, arXiv:2410.19123",
    claim="routers of a layer each are redundant; one apart from the layers lets experts be fetched and tokens be batched ahead",
    cost="a width x experts product a token, in the layer that leads",
)
class PreGate(Router):
    """The router of one layer sends each token to one expert, and to those of the same number in the layers that follow it.

    Ruisi Cai et al., 2024, arXiv:2410.19123.

    p = softmax(W x), x: the stream as it enters the layer that leads, before its attention; e = argmax p; y = w expert_e(x) there
    and in every layer after it that does not lead, w = 1, with the gradient of p_e. Terms of the loss: balance E sum_e f_e p_e,
    and z mean(logsumexp^2 W x).

    Different from the paper: its router is a small network over the tokens, apart from the model; this one reads the stream, in
    which the layers before it have put what came earlier.

    leads: whether this layer has the router; else it follows the last before it that has.
    balance, z: coefficients of the terms.
    scope: over which tokens f_e is: of the pass, of the step so far, or of that on all workers.
    """

    once = True
    active = 1

    def __init__(
        self,
        width: int,
        experts: int,
        *,
        leads: bool = True,
        balance: NonNegative = 0.01,
        z: NonNegative = 0.001,
        scope: Scope = "micro_batch",
    ) -> None:
        super().__init__(width, experts)
        self.leads, self.balance, self.z = leads, balance, z
        self.balancing = Balance(experts, scope)
        if not leads:
            self.gate = nn.Identity()  # type: ignore[assignment]

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
        best, chosen = shares.max(-1, keepdim=True)
        weights = torch.ones_like(best) + best - best.detach()
        terms = losses(self.balancing(shares, chosen), logits, self.balance, self.z)
        return by_expert(chosen, weights, self.experts, terms)

    def flops(self, shape: Shape, inputs: bool) -> int:
        """Operations of the scores, in the layer that has them."""
        return super().flops(shape, inputs) if self.leads else 0
