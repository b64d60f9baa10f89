"""Soft routing: every token goes through all experts, weighed by the router."""

import torch
from torch import Tensor

from shoestring.method import Positive, method
from shoestring.model.routing import Router, Routing


@method(
    "model",
    kind="router",
    name="soft",
    paper="From Sparse to Soft Mixtures of Experts, arXiv:2308.00951",
    claim="soft assignments have no balance to keep and no token to drop: in vision, better than sparse routers at equal compute",
    cost="all experts of a layer: leave out expert_hidden, and together they cost what the dense layer does",
)
class Soft(Router):
    """The causal form of Soft MoE: each token is a sequence of its own, with one slot an expert.

    Joan Puigcerver et al., 2023, arXiv:2308.00951.

        y = sum_e p_e expert_e(x),   p = softmax(W x / temperature) over the experts

    In the paper a slot mixes the tokens of a whole sequence, and a token is given a mixture of the slots. In a causal model that
    would tell a token what comes after it. Of a sequence of one token, a slot's input is that token, and the paper's formula is the
    one above. What is kept: everything is differentiable, nothing needs a term of the loss. What is lost: experts see single
    tokens, all of them, so that nothing is saved by there being many.

    temperature: of the softmax. The paper norms x and a slot's parameters and learns a scale; here x comes out of the block's norm.
    """

    def __init__(self, width: int, experts: int, *, temperature: Positive = 1.0) -> None:
        super().__init__(width, experts)
        self.active, self.temperature = experts, temperature

    @property
    def least(self) -> float:
        """As `Router.least`."""
        return 1

    def resize(self, experts: int) -> None:
        """As `Router.resize`."""
        self.experts = self.active = experts

    def choose_more(self, times: int) -> None:
        """As `Router.choose_more`: a token goes to all already."""

    def forward(self, x: Tensor) -> Routing:
        shares = (self.gate(x).flatten(0, -2) / self.temperature).softmax(-1)
        count = len(shares)
        tokens = torch.arange(count, device=x.device).repeat(self.experts)  # expert after expert
        counts = torch.full((self.experts,), count, device=x.device)
        return Routing(tokens, shares.T.flatten(), counts, {"load": shares.detach().sum(0)})
