"""Attention to the first tokens, the latest, and blocks of tokens at equal distances."""

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.contract.attention_rule import AttentionRule, AttentionSizes
from shoestring.contract.cost import Shape
from shoestring.surgery.delayed_eviction import DelayedEviction


class PartialContext(AttentionRule):
    """A token sees the `window` latest, its own among them, the first `sinks`, and every `stride`-th block of `block` tokens.

    Head h of keys sees the blocks whose number is h modulo `stride`; a stride of 0: none. Texts are read in pieces of `window`
    tokens, each with the keys that some of its tokens see: what nobody sees is not computed.
    """

    def __init__(self, *, window: int, sinks: int, block: int, stride: int) -> None:
        super().__init__()
        self.window, self.sinks, self.block, self.stride = window, sinks, block, stride

    @property
    def delay(self) -> int:
        """As `delayed_eviction.Leaving`."""
        return self.window - 1

    def extra_repr(self) -> str:
        return f"window={self.window}, sinks={self.sinks}, block={self.block}, stride={self.stride}"

    def leaving(self, positions: Tensor, heads: int) -> Tensor:
        """As `delayed_eviction.Leaving.leaving`."""
        leaves = (positions >= self.sinks).expand(heads, -1)
        if not self.stride:
            return leaves
        numbers = torch.arange(heads, device=positions.device)[:, None]
        return leaves & (positions // self.block % self.stride != numbers % self.stride)

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scale: float | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """As `AttentionRule.attend`."""
        heads, length = keys.shape[1], keys.shape[2]
        places, share = torch.arange(length, device=keys.device), queries.shape[1] // heads
        leaves = self.leaving(places, heads)
        # heads that see the same go together
        groups = [slice(head, head + 1) for head in range(heads)] if self.stride else [slice(0, heads)]
        found = []
        for group in groups:
            asked, leaving = queries[:, group.start * share : group.stop * share], leaves[group.start]
            parts = []
            for start in range(0, length, self.window):
                stop = min(start + self.window, length)
                at = places[:stop][~leaving[:stop] | (places[:stop] > start - self.window)]
                behind = places[start:stop, None] - at
                seen = (behind >= 0) & (~leaving[at] | (behind < self.window))
                if visible is not None:
                    seen = seen & visible[:, :, start:stop, at]
                each = asked[:, :, start:stop], keys[:, group, at], values[:, group, at]
                parts.append(
                    F.scaled_dot_product_attention(
                        *each, attn_mask=seen, scale=scale, enable_gqa=each[0].shape[1] != each[1].shape[1]
                    )
                )
            found.append(torch.cat(parts, 2))
        return torch.cat(found, 1)

    def new_layer(self) -> DelayedEviction:
        """As `AttentionRule.new_layer`."""
        return DelayedEviction(self)

    def pairs(self, shape: Shape, sizes: AttentionSizes) -> int:
        """As `AttentionRule.pairs`."""
        end = shape.past + shape.new
        stays = (~self.leaving(torch.arange(end, device="cpu"), sizes.key_value_heads)).long().cumsum(1)
        share, total = sizes.heads // sizes.key_value_heads, 0
        starts = [shape.past] if shape.past else range(0, end, self.window)
        for start in starts:
            stop = end if shape.past else min(start + self.window, end)
            far = max(start - self.window + 1, 0)  # up to where only what stays is there
            kept = int(stays[:, far - 1].sum()) if far else 0
            total += share * (stop - start) * (kept + sizes.key_value_heads * (stop - far))
        return total
