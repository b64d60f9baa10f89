"""A model whose logits a small one shifts, as cross-model control trains it to."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Cache
from shoestring.contract.cost import Cost, Shape
from shoestring.contract.model import About, Depth, Head, LanguageModel, Reading
from shoestring.errors import UsageError


class ShiftedHead(NamedTuple):
    """The `Head` of hidden states of both models, one after the other: host.logits(h) + strength control.logits(h')[tokens].

    width: of the host's. tokens: [V], of each token of the host that of the control; -1: none, and no shift. None: the same tokens.
    """

    host: Head
    control: Head
    width: int
    strength: float
    tokens: Tensor | None
    weight: None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V], float32."""
        found = self.host.logits(hidden[..., : self.width]).float()
        shift = self.control.logits(hidden[..., self.width :]).float()
        if self.tokens is not None:
            shift = torch.where(self.tokens >= 0, shift[..., self.tokens.clamp_min(0)], 0.0)
        return found + self.strength * shift

    def flops(self, places: int) -> int:
        """Operations of both products."""
        return self.host.flops(places) + self.control.flops(places)


class ControlledCache(Cache):
    """The caches of both models."""

    def __init__(self, host: Cache, control: Cache) -> None:
        super().__init__([], host.rows, min(host.room, control.room))
        self.host, self.control = host, control

    @property
    def nbytes(self) -> int:
        return self.host.nbytes + self.control.nbytes

    @property
    def rewindable(self) -> bool:
        return self.host.rewindable and self.control.rewindable

    def take(self, rows: Tensor) -> "ControlledCache":
        made = ControlledCache(self.host.take(rows), self.control.take(rows))
        made.lengths = list(made.host.lengths)
        return made

    def crop(self, lengths: Sequence[int]) -> None:
        self.host.crop(lengths)
        self.control.crop(lengths)
        self.lengths = list(self.host.lengths)

    def snapshot(self) -> Any:
        return self.host.snapshot(), self.control.snapshot()

    def restore(self, snapshot: Any) -> None:
        self.host.restore(snapshot[0])
        self.control.restore(snapshot[1])
        self.lengths = list(self.host.lengths)


class Controlled:
    """A `LanguageModel`: the host, with the logits of a small control model added. Neither is changed.

    Wu et al. (2024), "Cross-model Control", arXiv:2410.17599. Both read the same text, token for token; where their tokenizers
    differ, the control reads and shifts the token that `tokens` gives for each of the host's. It is decoded a row at a time, and
    costs a pass of each model.

    tokens: [V of the host] int64, of the control; -1: none, whose logit is not shifted, and in whose place it reads `filler`.
    None: both have one tokenizer.
    strength: of the shift.
    Raises: UsageError where the vocabularies differ and `tokens` is not given.
    """

    def __init__(
        self,
        host: LanguageModel,
        control: LanguageModel,
        *,
        tokens: Tensor | None = None,
        strength: float = 1.0,
        filler: int = 0,
    ) -> None:
        own, small = host.about, control.about
        if tokens is None and own.vocabulary != small.vocabulary:
            raise UsageError(
                f"the control has {small.vocabulary} tokens and the model {own.vocabulary}: say which of them go together"
            )
        if tokens is not None and len(tokens) != own.vocabulary:
            raise UsageError(f"{len(tokens)} tokens are given for a vocabulary of {own.vocabulary}")
        self.host, self.control, self.strength, self.filler = host, control, strength, filler
        self.tokens = None if tokens is None else tokens.to(host.device)
        width, layers = own.width + small.width, own.layers + small.layers
        self.about = About(own.vocabulary, min(own.context, small.context), width, layers, own.causal)

    @property
    def device(self) -> torch.device:
        return self.host.device

    def cost(self, shape: Shape) -> Cost:
        return self.host.cost(shape).beside(self.control.cost(shape))

    def new_cache(self, rows: int, room: int) -> ControlledCache:
        return ControlledCache(self.host.new_cache(rows, room), self.control.new_cache(rows, room))

    def read(
        self, inputs: Inputs, cache: Cache | None = None, *, tap: Sequence[str] = (), depth: Depth | None = None
    ) -> Reading:
        """As `LanguageModel.read`; taps are those of the host. Raises: UsageError for a depth."""
        if depth is not None:
            raise UsageError("a controlled model goes through all layers of both its models")
        own = cache if isinstance(cache, ControlledCache) else None
        if cache is not None and own is None:
            raise UsageError("a controlled model keeps two caches: make one by its new_cache")
        host = self.host.read(inputs, None if own is None else own.host, tap=tap)
        control = self.control.read(self._translated(inputs), None if own is None else own.control)
        if own is not None:
            own.lengths = list(own.host.lengths)
        hidden = torch.cat([host.hidden.float(), control.hidden.float()], -1)
        head = ShiftedHead(_float(host.head), _float(control.head), host.hidden.shape[-1], self.strength, self.tokens)
        return Reading(hidden, head, host.cost.beside(control.cost), host.notes, host.tapped)

    def _translated(self, inputs: Inputs) -> Inputs:
        """The same text in the control's tokens."""
        if self.tokens is None:
            return inputs
        found = self.tokens[inputs.values]
        return inputs._replace(values=torch.where(found >= 0, found, self.filler))


class _Cast(NamedTuple):
    """A head that takes hidden states of float32, whatever its own type is."""

    head: Head
    dtype: torch.dtype
    weight: None = None

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head.logits(hidden.to(self.dtype))

    def flops(self, places: int) -> int:
        return self.head.flops(places)


def _float(head: Head) -> Head:
    weight = head.weight
    return head if weight is None or weight.dtype == torch.float32 else _Cast(head, weight.dtype)
