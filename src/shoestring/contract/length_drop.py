"""A cache of one text whose prompt loses tokens on the way through the layers, by a schedule; gradients pass through it."""

import copy
import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from shoestring.contract.cache import Cache
from shoestring.contract.grouped_attention import grouped_attention
from shoestring.errors import UsageError


class DroppingLayer:
    """Keys and values of the tokens that came through a layer, [1, Hk, S, D], with their positions [S].

    asker: the position of the prompt's last token. looked: [S], how much of its attention each token has, the mean over heads;
    worked out where `notes`.
    """

    rewindable = False

    def __init__(self, notes: bool) -> None:
        self.notes, self.asker, self.flops = notes, -1, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.positions = self.arriving = torch.empty(0, dtype=torch.int64)
        self.looked = torch.empty(0)

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in (self.keys, self.values) if one is not None)

    @property
    def held(self) -> int:
        """S."""
        return len(self.positions)

    def begin(self, coming: Any) -> None:
        """Nothing: `DroppingCache.between` says who arrives."""

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, scale: float | None = None, window: int | None = None
    ) -> Tensor:
        """As `contract.cache.Attending`."""
        self.keys = keys if self.keys is None else torch.cat((self.keys, keys), 2)
        self.values = values if self.values is None else torch.cat((self.values, values), 2)
        self.positions = torch.cat((self.positions.to(self.arriving.device), self.arriving))
        behind = self.arriving[:, None] - self.positions
        visible = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        at = (self.arriving == self.asker).nonzero()
        if self.notes and len(at):
            row = int(at[0])
            factor = queries.shape[3] ** -0.5 if scale is None else scale
            asking = queries[0, :, row].detach().float().unflatten(0, (keys.shape[1], -1))
            scores = (asking @ self.keys[0].detach().float().mT * factor).masked_fill(~visible[row], -torch.inf)
            self.looked = scores.softmax(-1).mean((0, 1))
            self.flops += 2 * queries.shape[1] * self.held * queries.shape[3]
        return grouped_attention(queries, self.keys, self.values, mask=visible, scale=scale)

    def crop(self, lengths: Any) -> None:
        raise UsageError("tokens that left cannot be told from those that are cut: decode without drafts")

    def take(self, rows: Tensor) -> Self:
        raise UsageError("the layers of a cache of one text go together")

    def snapshot(self) -> Any:
        """What it holds; nothing of it is changed in place."""
        return dict(vars(self))

    def restore(self, snapshot: Any) -> None:
        vars(self).update(snapshot)


class DroppingCache(Cache):
    """Keys and values of one text, of fewer tokens of the prompt in each layer.

    counts: tokens of the prompt that each layer takes in, never more than the one before. Those stay that the prompt's last token
    looks at the most in the layer before; it stays itself. prompt: its length. Tokens after it go through all layers.
    """

    def __init__(self, counts: Sequence[int], prompt: int, room: int) -> None:
        super().__init__([DroppingLayer(notes=False) for _ in counts], 1, room)
        self.waiting: list[tuple[Tensor, Tensor]] = []
        """Of a prompt that comes in pieces, those that are there: it is read whole."""
        self.plan(counts, prompt)

    def plan(self, counts: Sequence[int], prompt: int) -> None:
        """Set the schedule of a prompt that was not read yet."""
        self.counts, self.prompt = list(counts), prompt
        for number, layer in enumerate(self.layers):
            layer.asker = prompt - 1
            layer.notes = number + 1 < len(counts) and counts[number + 1] < counts[number]

    def between(self, layer: int, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """As `contract.cache.Thinning`."""
        if layer == 0:
            if int(positions[0, -1]) + 1 < self.prompt:
                self.waiting.append((x, positions))
                return x[:, :0], positions[:, :0]
            pieces, self.waiting = [*self.waiting, (x, positions)], []
            x, positions = torch.cat([x for x, _ in pieces], 1), torch.cat([at for _, at in pieces], 1)
        of_prompt = positions[0] < self.prompt
        count = self.counts[layer]
        if layer and int(of_prompt.sum()) > count:
            looked = self.layers[layer - 1].looked[: int(of_prompt.sum())].clone()
            looked[-1] = math.inf  # the one that asks
            best = torch.sort(looked, descending=True, stable=True).indices[:count]
            stays = ~of_prompt
            stays[best] = True
            x, positions = x[:, stays], positions[:, stays]
        self.layers[layer].arriving = positions[0]
        return x, positions

    def asked(self, layer: int) -> int:
        """As `contract.cache.Thinning`."""
        found, self.layers[layer].flops = self.layers[layer].flops, 0
        return int(found)

    def take(self, rows: Tensor) -> "Cache":
        """A copy: there is one row."""
        if rows.tolist() != [0]:
            raise UsageError("a cache of one text has one row")
        return copy.deepcopy(self)


def counts_of(shares: Sequence[float], prompt: int) -> list[int]:
    """Tokens of a prompt that layers take in, of their shares of it: at least one, and never more than the layer before."""
    found = list[int]()
    for share in shares:
        count = max(1, math.ceil(share * prompt - 1e-9))
        found.append(min([count, *found[-1:]]))
    return found


def even_shares(layers: int, budget: float) -> list[float]:
    """Shares 1, r, r^2 ... whose mean is `budget`: each layer keeps as large a part of what came to it."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**place for place in range(layers)) < budget * layers else (low, middle)
    return [high**place for place in range(layers)]
