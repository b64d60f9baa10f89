"""Rules of attention in the layers of a wrapped model.

A layer that has a rule reads a configuration of its own, which names `ATTENTION` as its way of attention; all else in the model
reads the one that it had. The hidden states come by a hook.
"""

import copy
from functools import cache as once
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.contract.attention_rule import AttentionRule
from shoestring.errors import UsageError
from shoestring.model.wrapped_cache import attend_by_cache

RULE = "attention_rule"
"""The name of a rule in the module of attention."""

ATTENTION = "shoestring_rules"
"""The name of `_attend` among the attention functions of transformers."""


@once
def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attend)


def attention_of(layer: nn.Module) -> Any:
    """The module of attention of a decoder layer. Raises: UsageError where there is none that is known."""
    found = [
        one for one in layer.modules() if one is not layer and hasattr(one, "layer_idx") and hasattr(one, "config")
    ]
    if len(found) != 1:
        raise UsageError(
            f"a {type(layer).__name__} has no attention, or more than one, that a rule could take the place of"
        )
    return found[0]


def rule_of(layer: nn.Module) -> AttentionRule | None:
    """The rule of a decoder layer, where it has one."""
    return next((one for one in layer.modules() if isinstance(one, AttentionRule)), None)


def set_rule(attention: Any, rule: AttentionRule | None) -> None:
    """Have a module of attention attend by a rule, or as it did before."""
    _register()
    before = getattr(attention, RULE, None)
    if before is not None:
        delattr(attention, RULE)
        attention.rule_hook.remove()
        attention.config = attention.config_before
        del attention.rule_hook, attention.config_before
    if rule is None:
        return
    like = next(attention.parameters())
    rule = rule.to_empty(device="meta") if like.is_meta else rule.to(like.device)
    attention.add_module(RULE, rule)
    attention.config_before = attention.config
    attention.config = copy.copy(attention.config)
    attention.config._attn_implementation = ATTENTION
    attention.rule_hook = attention.register_forward_pre_hook(_hear, with_kwargs=True)


def _hear(attention: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    x = given[0] if given else named["hidden_states"]
    getattr(attention, RULE).hear(x)


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **more: Any) -> Any:
    """Attention of a layer by its rule, or by its part of a cache."""
    found = attend_by_cache(module, query, key, value, more)
    if found is None:
        if more.get("softcap") is not None:
            raise UsageError("scores of this model are capped, which a rule of attention does not know")
        rule, visible = getattr(module, RULE), attention_mask
        if visible is not None and visible.dtype != torch.bool:
            visible = visible > torch.finfo(visible.dtype).min / 2
        found = rule.attend(query, key, value, scale=more.get("scaling"), visible=visible)
    return found.transpose(1, 2), None
