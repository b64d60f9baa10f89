"""What follows the last step: a sample of the model's writing, and the summary."""

import contextlib
import re
import time
from typing import Any

import numpy as np

from shoestring.budget.ledger import SAMPLE, Ledger
from shoestring.contract.model import LanguageModule
from shoestring.data.corpus import own_prompt
from shoestring.data.dataset import Dataset
from shoestring.data.tokenizer import TextTokenizer
from shoestring.decode import Sampling, generate
from shoestring.optim.uncompiled import eagerly
from shoestring.train.config import RunConfig
from shoestring.train.edits import stated

PROMPT_TOKENS = 48
"""Tokens of a held-out document in which the words of a prompt are looked for."""

_WORDS = re.compile(r"\S+(?:[^\S\n]+\S+){0,4}")


def sample_prompt(config: RunConfig, dataset: Dataset) -> str:
    """The run's sample prompt: as configured, or the corpus's own, or the first words of a held-out document."""
    if config.train.sample is not None:
        return config.train.sample
    own = None if config.data.source else own_prompt(config.data.corpus)
    return _first_words(dataset) if own is None else own


def _first_words(dataset: Dataset) -> str:
    """The first words of the first held-out document that has any; '' where none of the first sixteen has."""
    store, tokenizer = dataset.heldout, dataset.tokenizer
    for start in store.document_starts[:16].tolist():
        ids = store.rows(np.array([start]), min(PROMPT_TOKENS, len(store) - start))[0].tolist()
        if tokenizer.end in ids:
            ids = ids[: ids.index(tokenizer.end)]
        found = _WORDS.search(tokenizer.decode(ids))
        if found:
            return found[0][:60].rstrip("\ufffd") or found[0]
    return ""


def draw_sample(
    model: LanguageModule, tokenizer: TextTokenizer, config: RunConfig, ledger: Ledger, prompt_text: str
) -> str:
    """What the model writes after a prompt, its FLOPs charged; a budget in seconds cuts it short."""
    settings = config.train
    if not settings.sample_tokens or not (model.about.causal or model.about.hides):  # an encoder writes nothing
        return ""
    prompt = tokenizer.encode(prompt_text)[: config.model.context - 1] or [tokenizer.end]
    sampling = Sampling(temperature=0.7, top_p=0.95, seed=config.seed)
    left = None if config.budget.seconds is None else config.budget.seconds - ledger.totals.wall_clock
    deadline = None if left is None else time.monotonic() + max(left, 0.0)
    with eagerly():  # one token at a time would have the compiler work for every length
        return _drawn(model, prompt, sampling, settings.sample_tokens, tokenizer, ledger, deadline)


def _drawn(
    model: LanguageModule,
    prompt: list[int],
    sampling: Sampling,
    most: int,
    tokenizer: TextTokenizer,
    ledger: Ledger,
    deadline: float | None,
) -> str:
    stream, text = tokenizer.stream(), ""
    tokens = generate(
        model,
        prompt,
        sampling,
        max_new_tokens=most,
        end=tokenizer.end,
        on_end=lambda _, spent: ledger.charge(spent.charge, SAMPLE),
    )
    with contextlib.closing(tokens):
        for token in tokens:
            text += stream.push(token)
            if deadline is not None and time.monotonic() >= deadline:
                break
    return text + stream.finish()


def spent_before(config: RunConfig) -> dict[str, float]:
    """seconds, flops and tokens of earlier runs that the configuration is drawn from, as a refined schedule is; {}: of none."""
    return dict(getattr(config.schedule.build(), "spent_before", {}))


def summary(
    config: RunConfig, model: LanguageModule, steps: int, ledger: Ledger, stopped: str, processes: int = 1
) -> dict[str, Any]:
    """The run in figures, as summary.json holds it.

    processes: that train it, each of which spends as much as this one.
    """
    totals = ledger.totals
    compute = totals.seconds.get("compute", 0.0)
    spent = config.budget.share(processes).spent(totals)
    return {
        "stopped": stopped,
        "budget": config.budget.write(),
        "binding": spent.binding,
        "spent": spent.shares,
        "steps": steps,
        "tokens": totals.tokens * processes,
        "tokens_discarded": totals.discarded * processes,
        "seconds": totals.wall_clock,
        "seconds_by_cause": dict(totals.seconds),
        "flops": totals.flops * processes,
        "flops_discarded": totals.flops_discarded * processes,
        "accounts": {name: charge.as_dict() for name, charge in totals.accounts.items()},
        "peak_memory": totals.peak_memory,
        "spent_before": spent_before(config),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_second": totals.tokens * processes / compute if compute else None,
        **stated(model),
    }
