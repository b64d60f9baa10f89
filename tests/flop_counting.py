"""Torch's counts of operations, and what they are told beside what torch knows."""

import math
from math import prod
from typing import Any, ClassVar

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def _transform(complex_input: bool) -> Any:
    """Of n real numbers 2.5 n log2 n, of n complex ones twice that."""

    def flops(given: Any, dims: Any, *others: Any, out_shape: Any = None, **_: Any) -> float:
        size = max(given[dims[0]], out_shape[dims[0]])
        return (5.0 if complex_input else 2.5) * size * math.log2(size) * prod(given) / given[dims[0]]

    return flops


# it knows the flash kernels of GPUs, not that of CPUs, which does the same products
CPU_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *given, **_: sdpa_flop_count(*given[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *given, **_: sdpa_backward_flop_count(*given[:4])
    ),
    torch.ops.aten._fft_r2c: _transform(False),
    torch.ops.aten._fft_c2r: _transform(False),
    torch.ops.aten._fft_c2c: _transform(True),
    # of [.., C, C] and [.., C, N]: a product and a sum for each entry of a triangle, and each column
    torch.ops.aten.linalg_solve_triangular: lambda matrix, right, *_, **__: prod(right) * matrix[-1],
}


class OperationCounter(TorchDispatchMode):
    """Counts what `FlopCounterMode` counts, by its formulas, in a fraction of its time: not by modules, and an operator that has
    no parts is asked for them once, not at every call."""

    supports_higher_order_operators = True
    _whole: ClassVar[set[OpOverload]] = set()

    def __init__(self) -> None:
        super().__init__()
        self._formulas = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION).flop_registry
        self._total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and to tell the compiler so costs more than the count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not isinstance(func, OpOverload):
            return NotImplemented
        kwargs = kwargs or {}
        if func not in self._whole:
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
            self._whole.add(func)
        found = func(*args, **kwargs)
        formula: Any = self._formulas.get(func._overloadpacket)
        if formula is not None:
            self._total += formula(*args, **kwargs, out_val=found)
        return found

    def get_total_flops(self) -> int:
        return self._total
