"""Does drafting pay? Tokens a second of each exact drafter over decoding without one, and whether the text is the same.

Texts are of Python's own library, in the model's tokens. 'copies': a piece of code, and its first half again, which the model goes
on copying; 'plain': a piece of code alone. Each round decodes the same prompts in every way, one after the other, so that all
share what else the machine does; a ratio is of the same round, and the median is over rounds. Reading the prompts is not timed.

Exact drafters give the text of decoding without one but for the last bits of sums, which differ by the shape of a pass. Texts
that differ are counted, with how near the two tokens were where they first did.

    python bench/speculation.py --json speculation.json
    python bench/speculation.py --draft runs/small          # a smaller model of the same tokens drafts, too
"""

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from shoestring.base import Opened, open_model
from shoestring.budget.machine import probe
from shoestring.contract.batch import Inputs
from shoestring.data.config import DataConfig
from shoestring.data.corpus import open_corpus
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.drafter import Drafter
from shoestring.method import find
from shoestring.train.run_folder import environment

GREEDY = Sampling(temperature=0)


def read(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", default="smollm2", help="the model, default smollm2")
    parser.add_argument("--drafters", nargs="*", default=["ngram"], help="names of drafters, default ngram")
    parser.add_argument("--draft", help="the place of a smaller model of the same tokens, which drafts too")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8], help="rows at a time, default 1 8")
    parser.add_argument("--prompts", type=int, default=8, help="prompts of each kind, default 8")
    parser.add_argument("--prompt-tokens", type=int, default=96, help="tokens of a piece of code, default 96")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of an answer, default 48")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, default 3")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, environment and every figure there")
    return parser.parse_args(words)


@dataclass(frozen=True)
class Run:
    """One way of decoding the prompts of one kind, once: seconds of all passes that follow the prompts' own."""

    kind: str
    rows: int
    drafter: str
    seconds: float
    tokens: int
    drafted: int
    wasted: int
    texts: list[list[int]]


def prompts(opened: Opened, options: argparse.Namespace) -> dict[str, list[list[int]]]:
    """Prompts of each kind."""
    assert opened.tokenizer is not None
    size, found = options.prompt_tokens, list[list[int]]()
    for document in open_corpus(DataConfig().corpus).documents():
        ids = opened.tokenizer.encode(document[200 : 200 + 16 * size])[:size]
        if len(ids) == size:
            found.append(ids)
        if len(found) == options.prompts:
            break
    return {"copies": [ids + ids[: size // 2] for ids in found], "plain": found}


def decoded(
    opened: Opened, kind: str, texts: list[list[int]], rows: int, name: str, drafter: Drafter | None, most: int
) -> Run:
    """Decode all prompts, `rows` at a time."""
    room = rows * (max(map(len, texts)) + most + 16)
    seconds, written, drafted, wasted = 0.0, dict[int, list[int]](), 0, 0
    for start in range(0, len(texts), rows):
        engine = Engine(opened.model, rows=rows, room=room, drafter=drafter, tokens=1024)
        tickets = [engine.submit(Request(tuple(text), GREEDY, most)) for text in texts[start : start + rows]]
        told = dict[int, list[int]]()
        while len(told) < len(tickets):  # the prompts, and the first token of each
            for event in engine.step():
                told.setdefault(event.number, []).extend(one.token for one in event.written)
        began = time.perf_counter()
        while engine.busy:
            for event in engine.step():
                told[event.number].extend(one.token for one in event.written)
                if event.spent is not None:
                    wasted += event.spent.charge.wasted
        seconds += time.perf_counter() - began
        drafted += engine.computed
        written |= {start + place: told[ticket] for place, ticket in enumerate(tickets)}
    got = [written[place] for place in range(len(texts))]
    return Run(kind, rows, name, seconds, sum(len(text) - 1 for text in got), drafted, wasted, got)


def margin(opened: Opened, prompt: list[int], one: list[int], other: list[int]) -> float:
    """By how much the logit of the token that was taken first exceeds the other's, where two texts part."""
    place = next(at for at, both in enumerate(zip(one, other, strict=False)) if both[0] != both[1])
    with torch.no_grad():
        reading = opened.model.read(Inputs(torch.tensor([prompt + one[:place]])))
        logits = reading.head.logits(reading.hidden[0, -1]).float()
    return float(logits[one[place]] - logits[other[place]])


def main() -> None:
    logging.basicConfig(level="INFO", format="%(message)s")
    options = read()
    opened = open_model(options.place, getattr(torch, options.dtype))
    ways: dict[str, Drafter | None] = {"none": None}
    ways |= {name: find("decode", name, "drafter").target() for name in options.drafters}
    if options.draft:
        small = open_model(options.draft, getattr(torch, options.dtype)).model
        ways["draft_model"] = find("decode", "draft_model", "drafter").target(small, opened.model)
    runs = list[Run]()
    for number in range(options.rounds):
        for kind, texts in prompts(opened, options).items():
            for rows in options.rows:
                for name, drafter in ways.items():
                    runs.append(decoded(opened, kind, texts, rows, name, drafter, options.tokens))
        print(f"round {number + 1} of {options.rounds} is done", flush=True)
    rows = table(opened, options, runs)
    print(
        f"{'text':8} {'rows':>4} {'drafter':14} {'tokens/s':>9} {'over none':>9} {'wasted':>7} {'other texts':>11} {'by':>8}"
    )
    for row in rows:
        print(
            f"{row['kind']:8} {row['rows']:>4} {row['drafter']:14} {row['rate']:>9.1f} {row['ratio']:>8.2f}x "
            f"{row['wasted']:>7.0%} {row['differ']:>11} {row['margin']:>8.4f}"
        )
    if options.json:
        about = {"settings": {**vars(options), "json": None}, "environment": environment(probe()), "rows": rows}
        options.json.write_text(json.dumps(about, indent=1, default=str) + "\n")


def table(opened: Opened, options: argparse.Namespace, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each kind of text, number of rows and drafter."""
    made, texts = list[dict[str, Any]](), prompts(opened, options)
    for kind, count, name in dict.fromkeys((run.kind, run.rows, run.drafter) for run in runs):
        own = [run for run in runs if (run.kind, run.rows, run.drafter) == (kind, count, name)]
        plain = [run for run in runs if (run.kind, run.rows, run.drafter) == (kind, count, "none")]
        ratios = [one.seconds / run.seconds for one, run in zip(plain, own, strict=True)]
        other = [at for at, both in enumerate(zip(plain[0].texts, own[0].texts, strict=True)) if both[0] != both[1]]
        margins = [margin(opened, texts[kind][at], plain[0].texts[at], own[0].texts[at]) for at in other]
        made.append(
            {
                "kind": kind,
                "rows": count,
                "drafter": name,
                "rate": median(run.tokens / run.seconds for run in own),
                "ratio": median(ratios),
                "ratios": ratios,
                "wasted": own[0].wasted / max(own[0].drafted, 1),
                "differ": len(other),
                "margin": max(map(abs, margins), default=0.0),
            }
        )
    return made


if __name__ == "__main__":
    main()
