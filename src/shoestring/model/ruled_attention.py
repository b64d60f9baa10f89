"""Attention of a native layer by a rule, in place of attention to all tokens before."""

from typing import Any

from torch import Tensor

from shoestring.contract import cost
from shoestring.contract.attention_rule import AttentionRule, AttentionSizes, RuledLayer
from shoestring.contract.cache import Attending
from shoestring.contract.cost import Shape
from shoestring.contract.model import Notes
from shoestring.errors import UsageError
from shoestring.model.attention import Attention


class RuledAttention(Attention):
    """An `Attention` whose `rule` attends, with the weights that it had."""

    rule: AttentionRule
    compiles = False

    @property
    def tells(self) -> bool:
        """As `model.block` says."""
        return self.rule.tells

    def forward(  # type: ignore[override]
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None, cache: Any = None
    ) -> Tensor | tuple[Tensor, Notes]:
        """As `Attention.forward`; with notes where it tells."""
        queries, keys, values = self.by_heads(x, cos, sin)
        self.rule.hear(x)
        if cache is None:
            visible = None if mask is None else mask.view(-1, 1, *mask.shape[-2:])
            mixed = self.rule.attend(queries, keys, values, visible=visible)
        elif isinstance(cache, Attending):
            mixed = cache.attend(queries, keys, values)
        else:
            raise UsageError("layers that attend by a rule have caches of their own: make one by model.new_cache")
        found = self.output(mixed.transpose(1, 2).flatten(2))
        return (found, self.rule.told() if cache is None else {}) if self.tells else found

    def own_cache(self, rows: int) -> RuledLayer:
        """The state of the layer."""
        return self.rule.new_cache(rows)

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """As `Attention.flops`."""
        back, own = shape.backward, self.rule.matrices_flops(shape.tokens, shape.backward, inputs)
        if not (back and cost.trains(self.rule)):
            return own + super().flops(shape, inputs)
        inside = inputs or any(cost.trains(part) for part in (self.qkv, self.query_norm, self.key_norm))
        projected = cost.linear(self.qkv, shape.tokens, back, inputs) + cost.linear(self.output, shape.tokens, back)
        return own + projected + self.inner_flops(shape, inside)

    def inner_flops(self, shape: Shape, backward: bool) -> int:
        """As `Attention.inner_flops`; backward: whether queries, keys and values take gradients."""
        sizes = AttentionSizes(self.qkv.in_features, self.heads, self.split[1])
        return self.rule.attention_flops(shape, sizes, self.head_width, self.head_width, backward)


def with_rule(attention: Attention, rule: AttentionRule | None) -> None:
    """Have a layer attend by a rule, or as it did before. Raises: UsageError where it is of another kind."""
    if type(attention) not in (Attention, RuledAttention):
        raise UsageError(
            f"a {type(attention).__name__} attends in a way of its own: rules take the place of plain attention"
        )
    if type(attention) is RuledAttention:
        del attention.rule
    attention.__class__ = Attention if rule is None else RuledAttention
    if rule is not None:
        like = attention.qkv.weight
        attention.rule = rule.to_empty(device="meta") if like.is_meta else rule.to(like.device)
