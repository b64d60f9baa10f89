"""Which tokens see which, in a pass without a cache."""

import torch
from torch import Tensor

from shoestring.contract.batch import Inputs


def attention_mask(inputs: Inputs, causal: bool) -> Tensor | None:
    """[B, 1, T, T] bool, as `Attention.forward` takes it: None wherever plain attention does, as its kernel is the fastest."""
    mask, documents = inputs.mask, inputs.documents
    if not causal:
        return _both_ways(inputs)
    if documents is not None:
        length = inputs.length
        before = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril() if mask is None else mask
        return ((documents[:, :, None] == documents[:, None, :]) & before)[:, None]
    return None if mask is None else mask[:, None]


def _both_ways(inputs: Inputs) -> Tensor | None:
    """As `attention_mask`, where a token sees those after it: padding must not be seen, and documents keep to themselves."""
    seen, length = inputs.mask, inputs.length
    if inputs.documents is not None:
        own = inputs.documents[:, :, None] == inputs.documents[:, None, :]
        seen = own if seen is None else seen & own
    if inputs.lengths is not None:
        places = torch.arange(length, device=inputs.values.device)
        there = (places < inputs.lengths[:, None])[:, None, :].expand(-1, length, -1)
        seen = there if seen is None else seen & there
    return None if seen is None else seen[:, None]
