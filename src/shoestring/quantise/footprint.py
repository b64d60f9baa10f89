"""The memory that a model takes while it is used: weights in 8 bits, its cache at full context, and what a pass keeps at once."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode

from shoestring.contract.batch import Inputs
from shoestring.contract.cost import Shape, bytes_of
from shoestring.errors import UsageError
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.quantise.folder import require_kept
from shoestring.quantise.formats.integer_groups import IntegerGroups
from shoestring.quantise.tables import table_bytes, table_names

BITS = 8
"""Of matrices and tables, where the model can be quantised."""


class Footprint(NamedTuple):
    """Bytes that a model takes in use.

    weights: matrices of the layers and tables in `bits` bits with their scales, all else in float32 or, where a model has integers
    alone, as it is kept.
    cache: of one text as long as the context, in float32, or int8 where a model has integers alone.
    activations: the most that is alive at once, beside these, as the last token of such a text is read and the next one scored.
    bits: 8; or 32, where the model is none that is kept quantised.
    """

    weights: int
    cache: int
    activations: int
    bits: int

    @property
    def total(self) -> int:
        """Of all three."""
        return self.weights + self.cache + self.activations


def footprint(config: ModelConfig) -> Footprint:
    """What a model of this shape takes in use, one token at a time, by building it and reading a text with it.

    EmbBERT-Q (arXiv:2502.10001) counts weights and activations so. Its activations are in 8 bits; here they are float32, as this
    library computes with them. The rotary tables, which are no weights, are not counted.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = Transformer(config).eval()
        quantised = _quantised(model)
        past = config.context - 1
        cache = model.new_cache(1, config.context)
        if past:
            model.read(Inputs(torch.zeros(1, past, dtype=torch.int64)), cache)
        with live_bytes() as most:
            reading = model.read(Inputs(torch.zeros(1, 1, dtype=torch.int64)), cache)
            reading.head.logits(reading.hidden[:, -1])
    held = model.cost(Shape(1, 0, config.context)).held - bytes_of(model)
    if quantised is None:
        return Footprint(bytes_of(model), held, most[0], 32)
    return Footprint(quantised, held, most[0], BITS)


def _quantised(model: Transformer) -> int | None:
    """Bytes of the weights as `shoestring quantise --to 8bit` keeps them; None: it would not."""
    try:
        require_kept(model)
    except UsageError:
        return None
    form, matrices = IntegerGroups().at(BITS), list(model.anatomy().matrices())
    packed = {f"{one.name}.weight" for one in matrices} | {f"{name}.weight" for name in table_names(model)}
    rest = sum(value.nbytes for name, value in _own_weights(model) if name not in packed)
    rows = sum(form.size(one.weight[..., 0].numel(), one.weight.shape[-1]) for one in matrices)
    return rest + rows + table_bytes(model, BITS)


def _own_weights(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Each once, by its first name."""
    seen = set[int]()
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            yield name, value


@contextmanager
def live_bytes() -> Iterator[list[int]]:
    """Counts within: a list of one number, the most bytes at once of tensors that were made within and were still there."""
    mode = _LiveBytes()
    with mode:
        yield mode.most


class _LiveBytes(TorchDispatchMode):
    """Sees what each operation gives, and hears when its memory is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self._now, self._known = [0], 0, dict[int, int]()

    def __torch_dispatch__(
        self, function: Any, kinds: Any, given: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        named = named or {}
        before = {_storage(one)._cdata for one in _tensors((given, named))}
        found = function(*given, **named)
        for one in _tensors(found):
            storage = _storage(one)
            if storage._cdata not in before and storage._cdata not in self._known:
                self._take(storage)
        return found

    def _take(self, storage: UntypedStorage) -> None:
        self._known[storage._cdata] = storage.nbytes()
        self._now += storage.nbytes()
        self.most[0] = max(self.most[0], self._now)
        weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, key: int) -> None:
        self._now -= self._known.pop(key)


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, dict):
        yield from _tensors(list(found.values()))
    elif isinstance(found, list | tuple):
        for one in found:
            yield from _tensors(one)
