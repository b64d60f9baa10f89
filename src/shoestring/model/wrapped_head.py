"""The head of a transformers model: one matrix where it is that, and else the model's own code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from shoestring.contract import cost
from shoestring.contract.model import Head, MatrixHead

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def head_of(stock: "PreTrainedModel") -> Head:
    """The head of a model. Whether it is one matrix, and no cap or factor is on its logits, is tried on large ones."""
    output: Any = stock.get_output_embeddings()
    own = OwnHead(stock)
    if type(output) is not nn.Linear or output.bias is not None or output.weight.is_meta:
        return own
    hidden = torch.randn(2, output.in_features, generator=torch.Generator().manual_seed(0)).to(output.weight)
    with torch.no_grad():
        hidden = hidden * (1000 / output(hidden).abs().amax().clamp_min(1e-6))
        plain = torch.allclose(own.logits(hidden).float(), output(hidden).float(), rtol=1e-2, atol=1e-2)
    return MatrixHead(output.weight) if plain else own


class OwnHead:
    """A `Head` that lets the model make its logits itself, with whatever cap, factor or bias it has."""

    weight: Tensor | None = None

    def __init__(self, stock: "PreTrainedModel") -> None:
        self.stock = stock

    def logits(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(1, -1, hidden.shape[-1])
        ids = torch.zeros(flat.shape[:2], dtype=torch.int64, device=flat.device)
        with _reading_as(self.stock.base_model, flat):
            logits: Tensor = self.stock(input_ids=ids, use_cache=False, return_dict=True).logits
        return logits.view(*hidden.shape[:-1], -1)

    def flops(self, places: int) -> int:
        return cost.linear(self.stock.get_output_embeddings(), places)


class _Answer:
    """What a backbone answers: hidden states, and None for all else that some models give."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return


@contextmanager
def _reading_as(backbone: nn.Module, hidden: Tensor) -> Iterator[None]:
    """For the block's time the backbone answers with these hidden states, so that the model computes its head alone."""
    before = vars(backbone).get("forward")
    backbone.forward = lambda *_, **__: _Answer(hidden)
    try:
        yield
    finally:
        del backbone.forward
        if before is not None:
            backbone.forward = before
