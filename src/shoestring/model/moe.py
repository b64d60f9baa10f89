"""Mixture of experts: many feed-forward layers, of which a token goes through few."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.config import Choice, Pick
from shoestring.contract import cost
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape
from shoestring.contract.experts import ExpertExchange, ExpertsAsked, ExpertSource
from shoestring.contract.model import Notes
from shoestring.errors import UsageError
from shoestring.method import method
from shoestring.model.routing import Router, Routing
from shoestring.model.stacked_linear import StackedLinear
from shoestring.model.swiglu import SwiGLU

ROUTER = Pick("model", "router", default="token_choice")
DEFAULT = ROUTER.choice()
ROUTING = "routing"
"""What it is called in a trail."""


@method(
    "model",
    kind="channel mixer",
    name="moe",
    paper="Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer, arXiv:1701.06538; "
    "DeepSeekMoE: Towards Ultimate Expert Specialization in Mixture-of-Experts Language Models, arXiv:2401.06066; "
    "SmallThinker: A Family of Efficient Large Language Models Natively Trained for Local Deployment, arXiv:2507.20984",
    claim="capacity grows with the experts while a token costs what its active ones cost",
    cost="FLOPs of the active experts and of the router; memory of all experts",
)
class MixtureOfExperts(nn.Module):
    """A router sends each token to a few of many SwiGLU layers, and adds up what they say.

    Noam Shazeer et al., 2017, arXiv:1701.06538; shared experts: Damai Dai et al., 2024, arXiv:2401.06066; a router before
    attention: Yixin Song et al., 2025, arXiv:2507.20984.

    y = sum_e w_e W_out,e (silu(W_gate,e x) * W_up,e x), e and w as the router says, and of `shared` experts always.
    Tokens are sorted by expert, and each expert is one product over its own: no token is padded or dropped.
    x: [B, T, width] -> ([B, T, width], notes): 'load' [E], and the router's terms of the loss.

    Cost: that of a dense layer of `hidden`, at any number of experts, where `expert_hidden` is left out.

    experts: how many, beside the shared ones. router: of which kind, with its options. expert_hidden: inner width of an expert; 0:
    such that the experts a token goes through come to the model's `hidden`. shared: experts that all tokens go through.
    before_attention: whether the router reads the stream as it enters the block, so that experts can be fetched meanwhile.
    """

    expansion = 8 / 3
    tells = True
    compiles = False

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        experts: Annotated[int, Interval(ge=1, le=4096)] = 8,
        router: Annotated[Choice, ROUTER] = DEFAULT,
        expert_hidden: Annotated[int, Interval(ge=0, le=1 << 20)] = 0,
        shared: Annotated[int, Interval(ge=0, le=64)] = 0,
        before_attention: bool = False,
    ) -> None:
        super().__init__()
        self.experts = experts
        self.router: Router = router.build(width, experts)
        self.early = before_attention or self.router.once
        each = expert_hidden or max(1, round(hidden / (self.router.active + shared)))
        self.input = StackedLinear(experts, width, 2 * each)
        self.output = StackedLinear(experts, each, width)
        self.shared = SwiGLU(width, shared * each) if shared else None
        self.source: ExpertSource | None = None
        """Holds the experts' weights, where this layer does not."""
        self.layer = 0
        self.exchange: ExpertExchange | None = None
        """Reaches the other experts, where this process has a part of them alone."""

    @staticmethod
    def alone(options: Mapping[str, Any]) -> dict[str, Any]:
        """As `model.block` says: with a router of its own."""
        router = options["router"]
        return {"router": {**router, "leads": True}} if "leads" in router else {}

    def silence(self) -> None:
        """The shared experts begin silent too, as the output of the others does."""
        if self.shared is not None:
            nn.init.zeros_(self.shared.output.weight)

    @property
    def follows(self) -> bool:
        """As `contract.experts.ExpertLayer.follows`."""
        return self.router.once and not self.router.leads

    def route(self, x: Tensor, trail: dict[str, Any] | None = None) -> Routing:
        """Which experts the tokens x [B, T, width] go to. trail: what earlier layers left."""
        if not self.router.once:
            found: Routing = self.router(x)
            return found
        if trail is None:
            raise UsageError(
                "one router for all layers, but these see only some of the tokens: take it out of this span"
            )
        if self.router.leads:
            trail[ROUTING] = self.router(x)
        if ROUTING not in trail:
            raise UsageError("a layer follows the router of one before it, and none before it has leads = true")
        found = trail[ROUTING]
        notes = found.notes if self.router.leads else {"load": found.notes["load"]}
        return found._replace(notes=notes)

    def forward(self, x: Tensor, routed: Routing | None = None) -> tuple[Tensor, Notes]:
        """x [B, T, width] -> ([B, T, width], notes). routed: what `route` said."""
        flat = x.flatten(0, -2)
        routing = routed or self.route(x)
        counts: list[int] = routing.counts.tolist()
        if self.source is not None:
            found = self._from_source(flat, ExpertsAsked(flat, routing.tokens, tuple(counts)))
        elif self.exchange is not None:
            found = self.exchange(flat[routing.tokens], counts, self._say)
        else:
            found = self._say(flat[routing.tokens], counts)
        weighted = found * routing.weights.to(found.dtype)[:, None]
        mixed = torch.zeros_like(flat, dtype=weighted.dtype).index_add(0, routing.tokens, weighted)
        if self.shared is not None:
            mixed = mixed + self.shared(flat)
        return mixed.view(x.shape), routing.notes

    def _say(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """What the experts here say of their rows [M, width], `counts` of each."""
        gate, up = self.input(rows, counts).chunk(2, -1)
        found: Tensor = self.output(F.silu(gate) * up, counts)
        return found

    def _from_source(self, flat: Tensor, called: ExpertsAsked) -> Tensor:
        """What the experts say of their tokens, [M, width], expert by expert as their weights come."""
        assert self.source is not None
        found = flat.new_empty(len(called.tokens), flat.shape[1])
        firsts = [0, *accumulate(called.counts)]
        for expert, (reading, writing) in self.source.take(self.layer, called):
            rows = slice(firsts[expert], firsts[expert + 1])
            gate, up = F.linear(flat[called.tokens[rows]], reading).chunk(2, -1)
            found[rows] = F.linear(F.silu(gate) * up, writing)
        return found

    @property
    def expert_bytes(self) -> int:
        """As `contract.experts.ExpertLayer.expert_bytes`."""
        return int((self.input.weight.nbytes + self.output.weight.nbytes) // self.experts)

    def put_away(self, source: ExpertSource, layer: int) -> tuple[Tensor, Tensor]:
        """As `contract.experts.ExpertLayer.put_away`."""
        stacks = self.input.weight.detach(), self.output.weight.detach()
        for stack in (self.input, self.output):
            stack.weight = nn.Parameter(stack.weight.detach().to("meta"), requires_grad=False)
        self.source, self.layer = source, layer
        return stacks

    def divide_experts(self, exchange: ExpertExchange, place: int, parts: int) -> tuple[str, ...]:
        """Keep part number `place` of `parts` equal ones of the experts, and ask `exchange` for all. `experts` stays the number of
        all, and the router has a row for each. Returns the names of the parameters of which a part is left, along dimension 0."""
        for stack in (self.input, self.output):
            part = stack.weight.detach().chunk(parts)[place].clone()
            stack.weight = nn.Parameter(part, requires_grad=stack.weight.requires_grad)
        self.exchange = exchange
        return "input.weight", "output.weight"

    def guess(self, x: Tensor) -> Tensor:
        """As `contract.experts.ExpertLayer.guess`."""
        found: Tensor = self.router.gate(x)
        return found

    def axes(self) -> tuple[Axis, ...]:
        """The axes of its weights: experts, the features of each, and the width that it reads and writes."""
        width = self.output.weight.shape[1]
        own = [Slice("input.weight", 2), Slice("output.weight", 1)]
        gate = [Slice("router.gate.weight", 1)] if self.router.leads else []
        own += gate
        if self.shared is not None:
            own += [one._replace(name=f"shared.{one.name}") for one in self.shared.axes()[0].slices]
        experts = Slice("input.weight", 0), Slice("output.weight", 0), *(one._replace(dim=0) for one in gate)
        each = self.output.weight.shape[2]
        features = Slice("input.weight", 1), Slice("input.weight", 1, each), Slice("output.weight", 2)
        found = (
            Axis("width", None, width, tuple(own)),
            Axis("expert", None, self.experts, experts),
            Axis("expert_hidden", None, each, features),
        )
        if self.shared is None:
            return found
        inside = self.shared.axes()[1]
        slices = tuple(one._replace(name=f"shared.{one.name}") for one in inside.slices)
        return (*found, Axis("shared_hidden", None, inside.size, slices))

    def own_options(self) -> dict[str, int]:
        """The options that make a mixer of these sizes, whatever the model's hidden width is."""
        return {"experts": self.experts, "expert_hidden": self.output.weight.shape[2]}

    def resized(self) -> None:
        """Have its sizes say what its weights have, after experts came or went."""
        self.experts = len(self.input.weight)
        self.router.resize(self.experts)

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        total = self.router.flops(shape, inputs)
        taken = self.router.taken(shape.tokens, shape.backward)
        inside = inputs or (shape.backward and (cost.trains(self.input) or cost.trains(self.router)))
        total += cost.linear(self.input, taken, shape.backward, inputs)
        total += cost.linear(self.output, taken, shape.backward, inside)
        return total + (0 if self.shared is None else self.shared.flops(shape, inputs))
