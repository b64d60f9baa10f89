"""Any model of this package under EleutherAI's lm-evaluation-harness, as its model 'shoestring'.

lm_eval has no way to find models of other packages, so this module is what is run in its place:

    python -m shoestring.base.lm_eval_model run --model shoestring --model_args place=smollm2 --tasks lambada_openai

Importing it is enough for `lm_eval.simple_evaluate(model="shoestring", ...)`.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shoestring.base.open_model import open_model
from shoestring.base.writer import Writer
from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import Inputs
from shoestring.contract.model import require_causal
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.answer_text import AnswerText
from shoestring.errors import ShoestringError, UsageError

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows
except ImportError:
    MISSING = "this needs lm_eval: pip install 'shoestring[lm-eval]'"
    if __name__ == "__main__":
        print(f"shoestring: {MISSING}", file=sys.stderr)
        sys.exit(2)
    raise UsageError(MISSING) from None

PLACES = 4096
"""Places of a pass, padding included; one text may have more."""

ANSWER = 256
"""Tokens of an answer, where a task does not say."""


@dataclass(frozen=True)
class ScoredEnd:
    """A text whose end is scored. ids: all tokens. last: how many of them, at the end."""

    ids: list[int]
    last: int


@register_model("shoestring")
class ShoestringLM(LM):
    """A model as lm_eval asks it.

    place: what `shoestring generate` opens.
    dtype: of the weights: 'float32', 'bfloat16' or 'float16'; None: as they are stored.
    rows: answers that are written at a time.
    batch_size and the like, which lm_eval passes to every model, are of no effect: passes are as large as suits the texts.
    Raises: UsageError where the place cannot be opened, or has no tokenizer.
    """

    def __init__(self, place: str, dtype: str | None = None, rows: int = 32, **_: Any) -> None:
        super().__init__()
        if dtype not in (None, "float32", "bfloat16", "float16"):
            raise UsageError(f"dtype = '{dtype}' is no type of weights: float32, bfloat16 or float16")
        self._writer = Writer.of(open_model(place, None if dtype is None else getattr(torch, dtype)))
        self._rows, self._chats = int(rows), False
        self.spent: Charge = NOTHING
        """What all requests took."""

    # ---- text to tokens

    @property
    def _first(self) -> int:
        """The token before a text."""
        tokenizer = self._writer.tokenizer
        return tokenizer.end if tokenizer.begin is None else tokenizer.begin

    def _encode(self, text: str) -> list[int]:
        """A text's tokens; what a chat template wrote has special ones."""
        tokenizer = self._writer.tokenizer
        return tokenizer.encode_special(text) if self._chats else tokenizer.encode(text)

    def _begun(self, ids: list[int]) -> list[int]:
        """With the token that the model's makers put before each text."""
        begin = self._writer.tokenizer.begin
        return ids if begin is None or ids[:1] == [begin] else [begin, *ids]

    def _pair(self, context: str, continuation: str) -> ScoredEnd:
        """The tokens of both together, of which those of the continuation count: white space between them is the latter's."""
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        whole, before = self._encode(bare + continuation), self._encode(bare)
        last = max(len(whole) - len(before), 1)
        ids = self._begun(whole) if bare else [self._first, *whole]
        return ScoredEnd(ids[-(self._writer.context + 1) :], min(last, self._writer.context))

    # ---- what lm_eval asks

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(the log-probability of each continuation, whether it is what greedy decoding writes)."""
        found = self._score([self._pair(*request.args) for request in requests])
        for request, each in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, each)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text, read in windows of the model's context."""
        texts, owners = list[ScoredEnd](), list[int]()
        for place, request in enumerate(requests):
            ids = self._encode(request.args[0])
            for seen, wanted in get_rolling_token_windows(ids, self._first, self._writer.context, 1):
                texts.append(ScoredEnd([*seen, wanted[-1]], len(wanted)))
                owners.append(place)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._score(texts), strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to a stop string."""
        asked, stops = list[Request](), list[list[str]]()
        for request in requests:
            context, settings = request.args
            until = settings.get("until") or []
            stops.append([each for each in ([until] if isinstance(until, str) else until) if each])
            most = min(int(settings.get("max_gen_toks", ANSWER)), self._writer.context - 1)
            ids = self._begun(self._encode(context)) or [self._first]
            ends = self._writer.answer_ends if self._chats else self._writer.ends
            asked.append(Request(tuple(ids[-(self._writer.context - most) :]), _sampling(settings), most, ends))
        texts = self._write(asked, stops)
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    @property
    def tokenizer_name(self) -> str:
        """What tells tokenizers apart."""
        return self._writer.tokenizer.fingerprint

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's template, where one is asked for."""
        return (self._writer.opened.about.chat_template or "") if chat_template else ""

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as text."""
        self._chats = True
        return self._writer.chat.text(list(chat_history), answer=add_generation_prompt)

    # ---- how it is done

    @torch.inference_mode()
    def _score(self, texts: Sequence[ScoredEnd]) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = [(0.0, True)] * len(texts)
        for batch in _batches(texts):
            for place, result in zip(batch, self._read([texts[place] for place in batch]), strict=True):
                found[place] = result
        return found

    def _read(self, texts: Sequence[ScoredEnd]) -> Iterator[tuple[float, bool]]:
        """One pass. Each text without its last token is read, and the tokens that are scored are looked up."""
        require_causal(self._writer.opened.model, "the likelihood of a text")
        model, sizes = self._writer.opened.model, [len(text.ids) - 1 for text in texts]
        values = torch.full((len(texts), max(sizes)), self._first)
        for row, text in enumerate(texts):
            values[row, : sizes[row]] = torch.tensor(text.ids[:-1])
        lengths = torch.tensor(sizes) if min(sizes) < max(sizes) else None
        reading = model.read(Inputs(values, lengths=lengths).to(model.device))
        flops = reading.cost.flops + reading.head.flops(sum(text.last for text in texts))
        self.spent += Charge(flops=flops, moved=reading.cost.moved, read=values.numel(), calls=1)
        for row, (text, size) in enumerate(zip(texts, sizes, strict=True)):
            logits = reading.head.logits(reading.hidden[row, size - text.last : size]).float().cpu()
            wanted = torch.tensor(text.ids[-text.last :])
            chosen = logits.gather(1, wanted[:, None])[:, 0].double() - logits.double().logsumexp(1)
            yield float(chosen.sum()), bool((logits.argmax(1) == wanted).all())

    def _write(self, requests: Sequence[Request], stops: Sequence[Sequence[str]]) -> list[str]:
        engine = Engine(self._writer.opened.model, rows=self._rows)
        texts = {
            engine.submit(request): AnswerText(self._writer.tokenizer.stream(), own)
            for request, own in zip(requests, stops, strict=True)
        }
        while engine.busy:
            for event in engine.step():
                text = texts[event.number]
                for written in event.written:
                    text.push(written.token)
                if event.stop is None and text.stopped:
                    engine.cancel(event.number)
                elif event.stop is not None and event.spent is not None:
                    text.finish()
                    self.spent += event.spent.charge
        return [text.text for text in texts.values()]


def _batches(texts: Sequence[ScoredEnd]) -> Iterator[list[int]]:
    """Places of texts that are read together, the longest first."""
    batch = list[int]()
    for place in sorted(range(len(texts)), key=lambda place: -len(texts[place].ids)):
        if batch and (len(batch) + 1) * len(texts[batch[0]].ids) > PLACES:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _sampling(settings: Mapping[str, Any]) -> Sampling:
    """How a task wants its answers: greedy, unless it says otherwise."""
    if not settings.get("do_sample", float(settings.get("temperature") or 0) > 0):
        return Sampling(temperature=0)
    named: Iterable[tuple[str, type]] = (("temperature", float), ("top_p", float), ("top_k", int), ("min_p", float))
    given = {name: kind(settings[name]) for name, kind in named if settings.get(name) is not None}
    return Sampling(**{"temperature": 1.0, **given, "seed": int(settings.get("seed") or 0)})


def main() -> int:
    """lm_eval's own command, which knows this model. Returns the exit status."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except ShoestringError as error:
        print(f"shoestring: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
