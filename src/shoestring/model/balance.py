"""The load-balancing loss of a router, and over which tokens the use of experts is counted."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Scope = Literal["micro_batch", "batch", "workers"]
"""Over which tokens the shares f_e are: of the pass, of the step so far, or of the step so far on all workers."""

Sum = Callable[[Tensor], Tensor]
"""The sum of a tensor over the workers of one step."""


class Balance:
    """E sum_e f_e p_e: 1 where experts are used alike, E where one has all.

    Switch Transformers, arXiv:2101.03961; over more than a micro-batch: Zihan Qiu et al., 2025, arXiv:2501.11873.

    p_e: mean share of expert e among the tokens of this pass. f_e: share of the choices that fell on e. A sequence of one subject
    may use few experts where f_e is of many sequences; where it is of few, the term forbids that.

    Of a step in several micro-batches, f_e is of those before and of this one: the first sees itself alone. (The paper keeps such a
    buffer too.) Where a layer is gone through several times in one pass, of its last time. The term's gradient flows through p_e.

    experts: E. scope: as `Scope` says.
    """

    def __init__(self, experts: int, scope: Scope) -> None:
        self.experts, self.scope = experts, scope
        self._sum: Sum | None = None
        self._before: Tensor | None = None  # choices of the micro-batches before this one
        self._own: Tensor | None = None

    def begin(self, part: int, over_workers: Sum | None) -> None:
        """A micro-batch begins: number `part` of its step."""
        self._sum = over_workers
        if part == 0:
            self._before = None
        elif self._own is not None:
            self._before = self._own if self._before is None else self._before + self._own
        self._own = None

    def __call__(self, shares: Tensor, chosen: Tensor) -> Tensor:
        """shares: [N, E], the router's softmax. chosen: [N, k]."""
        counts = torch.bincount(chosen.flatten(), minlength=self.experts)
        if self.scope != "micro_batch" and torch.is_grad_enabled():
            if self.scope == "workers" and self._sum is not None:
                counts = self._sum(counts)
            # put, not added: a layer that is computed again in the backward pass finds the counts that it had
            self._own = counts
            counts = counts if self._before is None else counts + self._before
        return self.experts * (counts / counts.sum() * shares.mean(0)).sum()
