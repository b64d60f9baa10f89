"""Continuing a text token by token, each token read once."""

from collections.abc import Callable, Collection, Iterator, Sequence
from enum import StrEnum

import torch
from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Cache
from shoestring.contract.model import LanguageModel
from shoestring.decode.sampler import SamplingConfig, sample
from shoestring.errors import UsageError


class Stop(StrEnum):
    """Why a generation ended."""

    END = "the text ended"
    LENGTH = "max_new_tokens reached"
    CONTEXT = "context is full"


def generate(
    model: LanguageModel,
    prompt: Sequence[int],
    settings: SamplingConfig,
    *,
    end: int | Collection[int] | None = None,
    generator: torch.Generator | None = None,
    on_spent: Callable[[Charge], None] | None = None,
    on_stop: Callable[[Stop], None] | None = None,
) -> Iterator[int]:
    """Yield the token ids that continue `prompt`, each as soon as it is chosen.

    end: the id that ends a text, or several of which any does; it is not yielded.
    generator: on CPU; None: a new one with the seed of `settings`.
    on_spent: told what every forward pass took.
    on_stop: told why the generation ended; a full context is one of the reasons, not an error.

    Raises: UsageError, at the first token, when the prompt is empty or longer than the context.
    """
    context = model.about.context
    if not prompt:
        raise UsageError("the prompt is empty: it needs at least one token")
    if len(prompt) > context:
        raise UsageError(f"the prompt has {len(prompt)} tokens, and the model's context is {context}")
    generator = generator or torch.Generator().manual_seed(settings.seed)
    ends = frozenset() if end is None else frozenset([end] if isinstance(end, int) else end)
    cache = model.new_cache(1, min(context, len(prompt) + settings.max_new_tokens))
    new = list(prompt)
    for count in range(1, settings.max_new_tokens + 1):
        logits, spent = _next_logits(model, new, cache)
        if on_spent:
            on_spent(spent)
        token = sample(logits, settings, generator)
        if token in ends:
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
def _next_logits(model: LanguageModel, new: list[int], cache: Cache) -> tuple[Tensor, Charge]:
    reading = model.read(Inputs(torch.tensor([new], device=model.device)), cache)
    logits = reading.head.logits(reading.hidden[0, -1]).float().cpu()
    return logits, Charge(flops=reading.cost.flops + reading.head.flops(1), moved=reading.cost.moved, read=len(new))
