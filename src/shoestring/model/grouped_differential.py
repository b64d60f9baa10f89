"""Grouped differential attention: several maps of signal, less one map of noise that they share."""

import math
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cache import Attending, KeyValues
from shoestring.contract.cost import Shape
from shoestring.contract.grouped_attention import grouped_attention
from shoestring.method import Epsilon, method
from shoestring.model.block import Place
from shoestring.model.cache import KeyValueShape
from shoestring.model.norm import RMSNorm
from shoestring.model.rotary import rotate


@method(
    "model",
    kind="token mixer",
    name="grouped_differential",
    paper="Grouped Differential Attention, arXiv:2510.06949; Motif 2 12.7B technical report, arXiv:2511.07464",
    claim="moderate imbalance of signal and noise heads gives better generalisation and stability than the symmetric form, at "
    "little compute",
    cost="attention of heads + key_value_heads maps, in one kernel; keys and values as grouped-query attention",
)
class GroupedDifferential(nn.Module):
    """Attention whose signal maps lose a shared map of noise.

    Junghwan Lim et al., 2025, arXiv:2510.06949; Differential Transformer: Tianzhu Ye et al., 2024, arXiv:2410.05258.

    Of each of `key_value_heads` groups, with d = head_width / 2, keys k1, k2 of d and values v of head_width:
    o_h = (softmax(q_h k1^T / sqrt(d)) - lambda softmax(q_noise k2^T / sqrt(d))) v for each of its heads h;
    y = W_out concat((1 - l0) RMSNorm(o_h)); lambda = exp(a1 . b1) - exp(a2 . b2) + l0, l0 = 0.8 - 0.6 exp(-0.3 layer).
    x: [B, T, width] -> [B, T, width]. Queries and keys are rotated by position.

    Different from the paper: one noise head a group of keys. Both maps are one kernel call over keys (k1, k2), with zeros in
    the half of a query that it does not read: twice the products of scores.

    rope_theta: base of the rotary frequencies. epsilon: of the norm of a head.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        key_value_heads: int,
        head_width: int,
        *,
        rope_theta: Annotated[float, Interval(gt=0, le=1e12)] = 10000.0,
        epsilon: Epsilon = 1e-5,
    ) -> None:
        super().__init__()
        if head_width % 4:
            raise ValueError(f"a half of head_width = {head_width} is rotated in pairs: it must divide by 4")
        self.heads, self.groups, self.part, self.rope_theta = heads, key_value_heads, head_width // 2, rope_theta
        self.sizes = (heads * self.part, key_value_heads * self.part, 2 * key_value_heads * self.part)
        self.qkv = nn.Linear(width, sum(self.sizes) + key_value_heads * head_width, bias=False)
        self.mixes = nn.ParameterList([nn.Parameter(torch.empty(self.part)) for _ in range(4)])
        self.norm = RMSNorm(head_width, epsilon=epsilon)
        self.output = nn.Linear(heads * head_width, width, bias=False)
        self.register_buffer("start", torch.tensor(0.2))
        self.draw()

    start: Tensor

    @torch.no_grad()
    def draw(self) -> None:
        """The vectors of lambda: normal, of standard deviation 0.1."""
        for vector in self.mixes:
            vector.normal_(std=0.1)

    def placed(self, place: Place) -> None:
        """Set l0 as the layer's number has it. It is kept with the weights, so that a layer that moves keeps it."""
        if self.start.device.type != "meta":
            self.start.fill_(0.8 - 0.6 * math.exp(-0.3 * place.layer))

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        cache: KeyValues | Attending | None = None,
    ) -> Tensor:
        """As `Attention.forward`."""
        part, groups = self.part, self.groups
        parts = self.qkv(x).split((*self.sizes, groups * 2 * part), -1)
        # every other frequency of a head's table is the table of half a head
        cos, sin = cos[..., ::2].to(x.dtype), sin[..., ::2].to(x.dtype)
        signal, noise, keys = (rotate(one.unflatten(-1, (-1, part)), cos, sin) for one in parts[:3])
        signal = F.pad(signal.unflatten(2, (groups, -1)), (0, part))
        noise = F.pad(noise.unflatten(2, (groups, 1)), (part, 0))
        q = torch.cat((signal, noise), 3).flatten(2, 3).transpose(1, 2)
        k = keys.unflatten(2, (groups, 2)).flatten(3).transpose(1, 2)
        v = parts[3].unflatten(-1, (groups, 2 * part)).transpose(1, 2)
        scale = part**-0.5
        if isinstance(cache, Attending):
            mixed = cache.attend(q, k, v, scale=scale)
        else:
            if cache is not None:
                k, v, mask = cache.append(k, v)
                if mask is not None and mask.shape[1] not in (1, q.shape[1]):
                    mask = mask.repeat_interleave(q.shape[1] // mask.shape[1], 1)
            causal = mask is None
            if q.shape[2] == 1:
                causal = False
            mixed = grouped_attention(q, k, v, mask=mask, is_causal=causal, scale=scale)
        maps = mixed.transpose(1, 2).unflatten(2, (groups, -1))
        first, second, third, fourth = self.mixes
        mix = ((first @ second).exp() - (third @ fourth).exp()).to(maps.dtype) + self.start.to(maps.dtype)
        found = maps[:, :, :, :-1] - mix * maps[:, :, :, -1:]
        return self.output((self.norm(found) * (1 - self.start).to(maps.dtype)).flatten(2))

    def cache_shape(self) -> KeyValueShape:
        """What is kept of each token."""
        return KeyValueShape(self.groups, 2 * self.part)

    def axes(self) -> tuple[Axis, ...]:
        """The axis of the width that it reads and writes."""
        own = (Slice("qkv.weight", 1), Slice("output.weight", 0))
        return (Axis("width", None, self.output.out_features, own),)

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        back = shape.backward
        inside = inputs or (back and cost.trains(self.qkv))
        projected = cost.linear(self.qkv, shape.tokens, back, inputs)
        projected += cost.linear(self.output, shape.tokens, back, inside or cost.trains(self.norm))
        maps = self.heads + self.groups
        keys = shape.past + shape.new
        return projected + cost.attention(shape.rows, maps, shape.new, keys, 2 * self.part, back and inside)
