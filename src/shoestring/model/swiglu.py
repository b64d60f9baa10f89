"""SwiGLU: a gated feed-forward layer."""

from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape
from shoestring.method import method


@method(
    "model",
    kind="channel mixer",
    name="swiglu",
    paper="GLU Variants Improve Transformer, arXiv:2002.05202",
    claim="lower perplexity than ReLU or GELU at equal parameters and FLOPs",
    cost="three matrices of width x hidden; at hidden = 8/3 width, the parameters of a plain layer of 4 width",
)
class SwiGLU(nn.Module):
    """A feed-forward layer whose hidden features are gated by silu of others.

    y = W_out (silu(W_gate x) * W_up x), with W_gate and W_up as one matrix `gate_up`. x: [..., width] -> [..., width].
    """

    expansion = 8 / 3

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.output = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.output(F.silu(gate) * up)

    def axes(self) -> tuple[Axis, ...]:
        """The axes of its weights: the hidden features, and the width that it reads and writes."""
        width, hidden = self.output.out_features, self.output.in_features
        gate, up = Slice("gate_up.weight", 0), Slice("gate_up.weight", 0, hidden)
        return (
            Axis("width", None, width, (Slice("gate_up.weight", 1), Slice("output.weight", 0))),
            Axis("hidden", None, hidden, (gate, up, Slice("output.weight", 1))),
        )

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        inside = inputs or (shape.backward and cost.trains(self.gate_up))
        first = cost.linear(self.gate_up, shape.tokens, shape.backward, inputs)
        return first + cost.linear(self.output, shape.tokens, shape.backward, inside)
