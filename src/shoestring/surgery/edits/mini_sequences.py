"""Feed-forward layers in pieces of the sequence, worked out again in the backward pass."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shoestring.contract import cost
from shoestring.contract.cost import Shape
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Count, method

NAMES = ("channel_mixer", "mlp", "feed_forward", "ffn")
"""What the feed-forward part of a layer is called: here, and by models of transformers."""


@method(
    "surgery",
    kind="edit",
    name="mini_sequences",
    paper="MINI-SEQUENCE TRANSFORMER: Optimizing Intermediate Memory for Long Sequences Training, arXiv:2407.15892",
    claim="Llama 3 8B trains on sequences 12 times as long, with no loss of throughput or convergence",
    cost="the feed-forward layers but their last product once more in each backward pass; hidden features of one piece at a time",
)
class MiniSequences:
    """Cut the sequence into pieces for the feed-forward layers, and keep no hidden features for the backward pass.

    y = [f(x_1); f(x_2); ...], with x_1, x_2 ... the pieces of `length` tokens of x: [B, T, width]. The backward pass works out
    f(x_i) again, one piece after the other. A piece sees no other, so outputs and gradients are the same but for the order of
    sums.

    length: tokens of a piece.

    The source cuts the head too. Here that is the objective's: `--execution.loss fused` never has the logits of more than
    a block of tokens.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, *, length: Count = 512) -> None:
        self.length = length

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The parts that are cut. Raises: UsageError where a layer has none that is known."""
        return Decision({"length": self.length, "parts": _parts(model)})

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model, its feed-forward layers cutting what they read."""
        for name in decision.values["parts"]:
            part = model.get_submodule(name)
            part.pieces = decision.values["length"]
            part.__class__ = _cut_class(_plain(type(part)))
        model.changed()
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model with the layers that it had."""
        for part in model.modules():
            if type(part) is not _plain(type(part)):
                part.__class__ = _plain(type(part))
                del part.pieces
        model.changed()
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        parts, length = decision.values["parts"], decision.values["length"]
        return f"mini_sequences: {len(parts)} feed-forward layers read {length} tokens at a time"


def _parts(model: LanguageModule) -> list[str]:
    found = []
    for layer in model.anatomy().layers:
        inside = dict(model.get_submodule(layer).named_modules())
        name = next((name for name in NAMES if name in inside), None)
        if name is None or not list(_matrices(inside[name])):
            raise UsageError(f"{layer} has no feed-forward part by a name that is known: {', '.join(NAMES)}")
        if any(p.ndim > 2 for p in inside[name].parameters()):
            raise UsageError(f"{layer}.{name} has stacked experts, whose operations in pieces are not known")
        found.append(f"{layer}.{name}")
    return found


def _matrices(part: nn.Module) -> list[nn.Module]:
    return [module for module in part.modules() if any(p.ndim > 1 for p in module.parameters(recurse=False))]


def _plain(kind: type) -> Any:
    """The class that one was made of; itself, where it was made of none."""
    return kind.__dict__.get("cut_of", kind)


@cache
def _cut_class(kind: Any) -> Any:
    """A class like `kind`, which cuts what it reads."""

    class Cut(kind):
        cut_of = kind
        pieces: int

        def forward(self, x: Tensor, *rest: Any, **more: Any) -> Any:
            plain = super().forward
            if x.ndim < 3 or (x.shape[-2] <= self.pieces and not torch.is_grad_enabled()):
                return plain(x, *rest, **more)
            made = []
            for piece in x.split(self.pieces, -2):
                if torch.is_grad_enabled():
                    made.append(checkpoint(plain, piece, *rest, use_reentrant=False, **more))
                else:
                    made.append(plain(piece, *rest, **more))
            return torch.cat(made, -2) if len(made) > 1 else made[0]

        def flops(self, asked: Any, *more: bool) -> int:
            """Of a native part (shape, inputs), or of one of transformers (tokens, backward, inputs)."""
            if isinstance(asked, Shape):
                tokens, backward, inputs = asked.tokens, asked.backward, more[0] if more else True
                whole: int = super().flops(asked, inputs)
                forward: int = super().flops(asked._replace(backward=False), inputs) if backward else 0
            else:
                tokens, backward, inputs = asked, *more
                whole, forward = _stock(self, tokens, backward, inputs), _stock(self, tokens, False, False)
            if not backward or not (inputs or cost.trains(self)):
                return whole
            return whole + forward - _product(_matrices(self)[-1], tokens)  # nobody asks for the last product again

    Cut.__name__ = Cut.__qualname__ = f"Cut{kind.__name__}"
    return Cut


def _product(module: nn.Module, tokens: int) -> int:
    if hasattr(type(module), "flops") or hasattr(module, "in_features"):
        return cost.linear(module, tokens)
    return sum(2 * tokens * p.numel() for p in module.parameters(recurse=False) if p.ndim == 2)


def _stock(part: nn.Module, tokens: int, backward: bool, inputs: bool) -> int:
    """Operations of a feed-forward part of transformers, its matrices one after the other."""
    total = 0
    for module in _matrices(part):
        products = 1 + (int(cost.trains(module)) + int(inputs) if backward else 0)
        total += products * _product(module, tokens)
        inputs = inputs or (backward and cost.trains(module))
    return total
