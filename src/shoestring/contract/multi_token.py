"""Heads that predict the tokens after the next one from the same hidden state. A model may carry them beside its own head."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.errors import UsageError

ATTRIBUTE = "multi_token_heads"
"""Where a model carries them."""


class TokenHead(nn.Module):
    """z' = norm(z + W_down silu(W_up z)): the hidden state [..., width] of a later token, of z as the model's head takes it."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.norm = nn.RMSNorm(width)

    def forward(self, hidden: Tensor) -> Tensor:
        made: Tensor = self.norm(hidden + self.down(F.silu(self.up(hidden))))
        return made


class MultiTokenHeads(nn.Module):
    """Heads 2 .. n: head k says what stands k places after what was read. The model's own head makes logits of what they give.

    ahead: n, tokens that are predicted, the next one among them. width: of hidden states. hidden: between W_up and W_down.
    seed: of W_up. W_down begins at zero: a head then says what the model says of the next token.
    """

    def __init__(self, ahead: int, width: int, hidden: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # what torch draws for them is of no use
            made = [TokenHead(width, hidden) for _ in range(ahead - 1)]
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for head in made:
                head.down.weight.zero_()
                head.up.weight.copy_(torch.randn(hidden, width, generator=generator) / width**0.5)
        self.heads = nn.ModuleList(made)

    @property
    def ahead(self) -> int:
        """n."""
        return len(self.heads) + 1

    def flops(self, places: int) -> int:
        """Operations of all of them at so many places, forward, without logits."""
        return 2 * places * sum(weight.numel() for weight in self.parameters() if weight.dim() == 2)

    @property
    def moved(self) -> int:
        """Bytes of their weights."""
        return sum(weight.nbytes for weight in self.parameters())


def heads_of(model: object) -> MultiTokenHeads:
    """The heads that a model carries. Raises: UsageError where it has none."""
    found = getattr(model, ATTRIBUTE, None)
    if not isinstance(found, MultiTokenHeads):
        raise UsageError(
            "this model has no heads for later tokens: train one with --edits multi_token_heads --objective multi_token"
        )
    return found
