"""Continuing one text token by token."""

from collections.abc import Callable, Collection, Generator, Iterator, Sequence

from shoestring.contract.model import LanguageModel
from shoestring.decode.denoise import Denoiser
from shoestring.decode.engine import Engine
from shoestring.decode.request import AnswerSpent, Event, Request, Stop
from shoestring.decode.sampling import Sampling
from shoestring.errors import UsageError


def generate(
    model: LanguageModel,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    max_new_tokens: int = 256,
    end: int | Collection[int] | None = None,
    on_end: Callable[[Stop, AnswerSpent], None] | None = None,
) -> Generator[int]:
    """Yield the token ids that continue `prompt`, each as soon as it is chosen.

    max_new_tokens: where to stop at the latest.
    end: the id that ends a text, or several of which any does; it is not yielded.
    on_end: told why the generation ended, and what it took; a full context is one of the reasons, not an error. It is told
        too where the caller asks for no more tokens.

    A model that sees both ways fills in the whole answer first (`decode/denoise.py`).

    Raises: UsageError, at the first token, when the prompt is empty or longer than the context.
    """
    if not prompt:
        raise UsageError("the prompt is empty: it needs at least one token")
    ends = frozenset() if end is None else frozenset([end] if isinstance(end, int) else end)
    if not model.about.causal:
        answer = Denoiser(model).answer(prompt, sampling, max_new_tokens=max_new_tokens, ends=ends)
        if on_end:
            on_end(answer.stop, answer.spent)
        yield from answer.tokens
        return
    room = min(model.about.context, len(prompt) + max_new_tokens)
    engine = Engine(model, rows=1, room=room)
    engine.submit(Request(tuple(prompt), sampling, max_new_tokens, ends))
    try:
        while engine.busy:
            yield from _told(engine.step(), on_end)
    finally:
        engine.cancel(1)
        list(_told(engine.step(), on_end))


def _told(events: Sequence[Event], on_end: Callable[[Stop, AnswerSpent], None] | None) -> Iterator[int]:
    """The tokens of these events. `on_end` is told first, as the caller may not come back after a token."""
    for event in events:
        if event.stop is not None and event.spent is not None and on_end:
            on_end(event.stop, event.spent)
        for written in event.written:
            yield written.token
