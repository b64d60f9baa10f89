"""Continuing a text token by token, each token read once."""

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import Any, Protocol

import torch
from torch import Tensor

from shoestring.decode.sampler import SamplingConfig, sample
from shoestring.errors import UsageError


class Stop(StrEnum):
    """Why a generation ended."""

    END = "the text ended"
    LENGTH = "max_new_tokens reached"
    CONTEXT = "context is full"


class CachedModel(Protocol):
    """What a model needs to be decoded: `shoestring.model.Transformer` has it."""

    @property
    def config(self) -> Any:
        """With `context`, the most tokens of a sequence, and `vocabulary`, how many there are."""

    @property
    def device(self) -> torch.device:
        """Where token ids are wanted."""

    def hidden(self, inputs: Tensor, *, cache: Any) -> Tensor:
        """[1, T, width] for the ids [1, T] that follow those in `cache`, which takes them in."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., vocabulary] from hidden states [..., width]."""

    def new_cache(self, batch: int, length: int) -> Any:
        """An empty cache."""

    def flops(self, batch: int, length: int, backward: bool, *, past: int, outputs: int) -> int:
        """Operations for `length` tokens after `past` cached ones, with logits at `outputs` positions."""


def generate(
    model: CachedModel,
    prompt: Sequence[int],
    settings: SamplingConfig,
    *,
    end: int | None = None,
    generator: torch.Generator | None = None,
    on_flops: Callable[[int], None] | None = None,
    on_stop: Callable[[Stop], None] | None = None,
) -> Iterator[int]:
    """Yield the token ids that continue `prompt`, each as soon as it is chosen.

    end: the id that ends a text; it is not yielded. generator: on CPU; None = a new one with the seed of `settings`.
    on_flops: told the operations of every forward pass. on_stop: told why the generation ended; a full context is one
    of the reasons, not an error.

    Raises: UsageError, at the first token, when the prompt is empty or longer than the context.
    """
    context = model.config.context
    if not prompt:
        raise UsageError("the prompt is empty: it needs at least one token")
    if len(prompt) > context:
        raise UsageError(f"the prompt has {len(prompt)} tokens, and the model's context is {context}")
    generator = generator or torch.Generator().manual_seed(settings.seed)
    cache = model.new_cache(1, min(context, len(prompt) + settings.max_new_tokens))
    new = list(prompt)
    for count in range(1, settings.max_new_tokens + 1):
        if on_flops:
            on_flops(model.flops(1, len(new), False, past=cache.length, outputs=1))
        token = sample(_next_logits(model, new, cache), settings, generator)
        if token == end:
            stop = Stop.END
            break
        yield token
        if count == settings.max_new_tokens:
            stop = Stop.LENGTH
        elif cache.length == context:
            stop = Stop.CONTEXT
            break
        new = [token]
    if on_stop:
        on_stop(stop)


# not around the generator's body: the mode would stay on in the caller's code between two tokens
@torch.inference_mode()
def _next_logits(model: CachedModel, new: list[int], cache: Any) -> Tensor:
    inputs = torch.tensor([new], device=model.device)
    last = model.hidden(inputs, cache=cache)[0, -1]
    return model.logits(last).float().cpu()
