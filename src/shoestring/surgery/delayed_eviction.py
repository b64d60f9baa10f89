"""Keys and values that leave some tokens after they came, those of each head by themselves."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.contract.attention_rule import RuledLayer
from shoestring.errors import UsageError


class Leaving(Protocol):
    """Says which tokens leave."""

    @property
    def delay(self) -> int:
        """How many tokens back one is still seen that leaves."""
        ...

    def leaving(self, positions: Tensor, heads: int) -> Tensor:
        """[Hk, n] bool: which of the tokens at these positions [n], which were just heard, leave. heads: Hk."""
        ...


class DelayedEviction(RuledLayer):
    """Keys and values of one text by head of keys, each as many as did not leave.

    keys, values: of each head [n, D]. positions: of each head [n] int64. leaving: of each head [n] bool.
    """

    def __init__(self, rule: Leaving) -> None:
        self.rule = rule
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.positions: list[Tensor] = []
        self.leaving: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for side in (self.keys, self.values, self.positions, self.leaving) for one in side)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, scale: float | None = None, window: int | None = None
    ) -> Tensor:
        """As `contract.cache.Attending`. What no later token sees is freed."""
        if window is not None:
            raise UsageError("a layer that sees a window of the context has no rule beside it")
        heads, new, delay = keys.shape[1], keys.shape[2], self.rule.delay
        own = torch.arange(self.first, self.first + new, device=keys.device)
        decided, share = self.rule.leaving(own, heads), queries.shape[1] // heads
        held: tuple[list[Tensor], ...] = ([], [], [], [])
        mixed = []
        for head in range(heads):
            fresh = keys[0, head], values[0, head], own, decided[head]
            before = self._head(head)
            k, v, at, leaving = (torch.cat(both) for both in zip(before, fresh, strict=True)) if before else fresh
            behind = own[:, None] - at
            seen = (behind >= 0) & ~(leaving & (behind > delay))
            group = queries[:, head * share : (head + 1) * share]
            mixed.append(
                F.scaled_dot_product_attention(
                    group, k[None, None], v[None, None], attn_mask=seen, scale=scale, enable_gqa=True
                )
            )
            stays = ~(leaving & (self.first + new - at > delay))
            for side, one in zip(held, (k, v, at, leaving), strict=True):
                side.append(one[stays])
        self.keys, self.values, self.positions, self.leaving = held
        return torch.cat(mixed, 1)

    def _head(self, head: int) -> tuple[Tensor, ...]:
        """What is held of a head; nothing at first."""
        sides = self.keys, self.values, self.positions, self.leaving
        return tuple(side[head] for side in sides) if self.keys else ()
