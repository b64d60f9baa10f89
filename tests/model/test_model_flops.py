"""The modules' own counts against torch's counter."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from shoestring.model import Transformer

# torch's counter knows the flash kernels of GPUs, not that of CPUs, which does the same products
CPU_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *given, **_: sdpa_flop_count(*given[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *given, **_: sdpa_backward_flop_count(*given[:4])
    ),
}


@pytest.mark.parametrize("length", [1, 7, 48])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_flops_are_those_torch_counts(model: Transformer, length: int, packed: bool, backward: bool) -> None:
    inputs = torch.zeros(3, length, dtype=torch.int64)
    documents = (torch.arange(length) // 4).expand(3, -1) if packed else None
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        with nullcontext() if backward else torch.no_grad():
            logits = model(inputs, documents=documents)
        if backward:
            logits.sum().backward()
    assert model.flops(3, length, backward) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(("past", "new"), [(0, 9), (9, 1), (9, 4)])
def test_flops_of_cached_decoding(model: Transformer, past: int, new: int) -> None:
    cache = model.new_cache(2, 20)
    with torch.no_grad():
        if past:
            model.hidden(torch.zeros(2, past, dtype=torch.int64), cache=cache)
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            model.hidden(torch.zeros(2, new, dtype=torch.int64), cache=cache)[:, -1:] @ model.head_weight.T
    assert model.flops(2, new, False, past=past, outputs=1) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_parts_add_up(model: Transformer) -> None:
    head = model.flops(2, 8, True) - model.flops(2, 8, True, outputs=0)
    assert head == 3 * 2 * 2 * 8 * 32 * 50
    parts = sum(b.token_mixer.flops(2, 8, True) + b.channel_mixer.flops(2, 8, True) for b in model.blocks)  # type: ignore[operator, union-attr]
    assert model.flops(2, 8) == parts + head
