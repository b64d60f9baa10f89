"""What the server gives its clients: tokens a second, time to the first token, time between tokens; and goodput under deadlines.

`shoestring serve` runs as a process of its own; the clients are here, over HTTP on the loopback, with streams. Prompts are of
random tokens that make text, each another, so that no beginning is shared; every answer has as many tokens as are asked for.

    closed   so many clients, each of which asks again as soon as it has its answer
    poisson  requests that come at random, at --loads times the rate of the largest closed loop, each with a deadline of
             --patience times what an answer takes alone; --policies admit (the server refuses what cannot be met) and fifo
             (no deadline is told, and what comes too late counts for nothing)

Beside it, `transformers`' continuous batching (`generate_batch`) in a process of its own on the same prompts, which has no
clients: tokens a second alone. llama.cpp stands beside the engine in `decode_cpu.py`.

    python bench/serve.py --json serve.json
"""

import argparse
import asyncio
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx2 as httpx

from shoestring.budget.machine import probe
from shoestring.train.run_folder import environment

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "it",
    "was",
    "for",
    "on",
    "are",
    "with",
    "as",
    "at",
    "be",
    "this",
    "have",
]


def read(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", default="smollm2", help="the model, default smollm2")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32], help="of closed loops, default 1 8 32")
    parser.add_argument("--each", type=int, default=2, help="answers to each client, default 2")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt, about; default 128")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer, default 64")
    parser.add_argument(
        "--loads", type=float, nargs="*", default=[0.5, 1.0, 2.0], help="of Poisson arrivals, default 0.5 1 2"
    )
    parser.add_argument("--arrivals", type=int, default=24, help="requests of each load, default 24")
    parser.add_argument("--patience", type=float, default=4.0, help="deadlines, in times of an answer alone, default 4")
    parser.add_argument("--policies", nargs="*", default=["admit", "fifo"], choices=("admit", "fifo"))
    parser.add_argument("--peers", nargs="*", default=["transformers"], choices=("transformers",), help="beside it")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that a peer may take, default 300")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, environment and every figure there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(words)


@dataclass
class Answer:
    """What a client saw. began: of asking. pieces: times of the text's pieces. tokens: by the server's count. refused: by it."""

    began: float
    pieces: list[float] = field(default_factory=list)
    tokens: int = 0
    ended: float = 0.0
    refused: bool = False


def prompt(chance: random.Random, tokens: int) -> str:
    """Text of about so many tokens."""
    return " ".join(chance.choice(WORDS) for _ in range(tokens))


async def pieces(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


async def ask(client: httpx.AsyncClient, text: str, options: argparse.Namespace, seconds: float | None) -> Answer:
    """One request, as a stream."""
    body: dict[str, Any] = {"model": options.place, "prompt": text, "max_tokens": options.tokens, "temperature": 0}
    body |= {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    if seconds is not None:
        body["budget"] = {"seconds": seconds}
    answer = Answer(time.perf_counter())
    async with client.stream("POST", "/v1/completions", json=body, timeout=None) as response:
        if response.status_code == 429:
            answer.refused = True
        elif response.status_code != 200:
            raise SystemExit(f"the server answered {response.status_code}: {(await response.aread()).decode()[:300]}")
        else:
            async for piece in pieces(response):
                if piece.get("usage"):
                    answer.tokens = int(piece["usage"]["completion_tokens"])
                else:
                    answer.pieces.append(time.perf_counter())
    answer.ended = time.perf_counter()
    return answer


@contextmanager
def server(options: argparse.Namespace) -> Iterator[str]:
    """The address of a server that runs for the time of the block."""
    words = [sys.executable, "-m", "shoestring", "serve", options.place, "--port", "0", "--dtype", options.dtype]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("http"):
            raise SystemExit("the server did not start: run `shoestring serve` by hand")
        try:
            yield line.split()[0]
        finally:
            process.terminate()


def percentile(values: Sequence[float], share: float) -> float:
    """Of few values the nearest."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def summed(answers: Sequence[Answer], seconds: float) -> dict[str, float]:
    """Tokens a second, and the median and the 99th percentile of the times to the first token and between tokens."""
    first = [one.pieces[0] - one.began for one in answers if one.pieces]
    gaps = [after - before for one in answers for before, after in itertools.pairwise(one.pieces)]
    return {
        "rate": sum(one.tokens for one in answers) / seconds,
        "first": median(first) if first else float("nan"),
        "first_p99": percentile(first, 0.99),
        "between": median(gaps) if gaps else float("nan"),
        "between_p99": percentile(gaps, 0.99),
    }


async def closed(address: str, clients: int, options: argparse.Namespace) -> dict[str, float]:
    """So many clients, each of which asks `each` times."""
    chance = random.Random(clients)
    texts = [[prompt(chance, options.prompt) for _ in range(options.each)] for _ in range(clients)]

    async def one(client: httpx.AsyncClient, own: list[str]) -> list[Answer]:
        return [await ask(client, text, options, None) for text in own]

    async with httpx.AsyncClient(base_url=address) as client:
        began = time.perf_counter()
        found = await asyncio.gather(*(one(client, own) for own in texts))
        seconds = time.perf_counter() - began
    return summed([answer for own in found for answer in own], seconds)


async def poisson(
    address: str, rate: float, patience: float, policy: str, options: argparse.Namespace
) -> dict[str, float]:
    """Requests that come at random, so many a second, each of use only within `patience` seconds."""
    chance = random.Random(7)

    async def one(client: httpx.AsyncClient, after: float, text: str) -> Answer:
        await asyncio.sleep(after)
        return await ask(client, text, options, patience if policy == "admit" else None)

    at, asked = 0.0, list[tuple[float, str]]()
    for _ in range(options.arrivals):
        at += chance.expovariate(rate)
        asked.append((at, prompt(chance, options.prompt)))
    async with httpx.AsyncClient(base_url=address) as client:
        began = time.perf_counter()
        found = await asyncio.gather(*(one(client, *each) for each in asked))
        seconds = time.perf_counter() - began
    good = [answer for answer in found if not answer.refused and answer.ended - answer.began <= patience]
    refused = sum(answer.refused for answer in found)
    return {
        "good": len(good) / seconds,
        "share": len(good) / len(found),
        "refused": refused,
        "late": len(found) - len(good) - refused,
        **summed([answer for answer in found if not answer.refused], seconds),
    }


def transformers_rate(options: argparse.Namespace) -> dict[int, float]:
    """Tokens a second of transformers' continuous batching, by the number of prompts."""
    import torch
    from transformers import GenerationConfig

    from shoestring.base import open_model
    from shoestring.model.hf import to_transformers
    from shoestring.model.transformer import Transformer

    opened = open_model(options.place, getattr(torch, options.dtype))
    assert isinstance(opened.model, Transformer)
    assert opened.tokenizer is not None
    stock: Any = to_transformers(opened.model)
    found, chance = dict[int, float](), random.Random(0)
    settings = GenerationConfig(max_new_tokens=options.tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    for count in options.clients:
        ids = [opened.tokenizer.encode(prompt(chance, options.prompt)) for _ in range(count * options.each)]
        began = time.perf_counter()
        stock.generate_batch(inputs=ids, generation_config=settings)
        found[count] = len(ids) * options.tokens / (time.perf_counter() - began)
    return found


def main() -> None:
    options = read()
    if options.child:
        print(json.dumps(transformers_rate(options)))
        return
    rows, goodput = list[dict[str, Any]](), list[dict[str, Any]]()
    with server(options) as address:
        asyncio.run(closed(address, 1, options))  # nobody's figure: what is slow the first time
        for clients in options.clients:
            rows.append({"clients": clients, **asyncio.run(closed(address, clients, options))})
        alone = rows[0]["first"] + options.tokens * rows[0]["between"]
        capacity = max(row["rate"] for row in rows) / options.tokens
        for load in options.loads:
            for policy in options.policies:
                made = asyncio.run(poisson(address, load * capacity, options.patience * alone, policy, options))
                goodput.append({"load": load, "policy": policy, **made})
    peers: dict[str, dict[str, float]] = {}
    for peer in options.peers:
        words = [sys.executable, __file__, *sys.argv[1:], "--child", peer]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=options.limit)
        except subprocess.TimeoutExpired:
            print(f"{peer} was not done in {options.limit:g} s")
            continue
        if done.returncode:
            print(f"{peer} did not run: {(done.stderr.strip().splitlines() or [''])[-1][:200]}")
        else:
            peers[peer] = json.loads(done.stdout.strip().splitlines()[-1])
    print(
        f"{'clients':>7} {'tokens/s':>9} {'first':>8} {'p99':>8} {'between':>8} {'p99':>8}  {'over ' + ', '.join(peers)}"
    )
    for row in rows:
        over = ", ".join(f"{row['rate'] / peers[peer][str(row['clients'])]:.2f}x" for peer in peers)
        times = " ".join(f"{1e3 * row[key]:>6.0f}ms" for key in ("first", "first_p99", "between", "between_p99"))
        print(f"{row['clients']:>7} {row['rate']:>9.1f} {times}  {over}")
    print(f"{'load':>7} {'policy':8} {'good/s':>7} {'in time':>8} {'refused':>8} {'late':>5}")
    for row in goodput:
        print(
            f"{row['load']:>7} {row['policy']:8} {row['good']:>7.3f} {row['share']:>8.0%} {row['refused']:>8} {row['late']:>5}"
        )
    if options.json:
        about = {"settings": {**vars(options), "json": None}, "environment": environment(probe())}
        options.json.write_text(
            json.dumps({**about, "closed": rows, "poisson": goodput, "peers": peers}, indent=1, default=str) + "\n"
        )


if __name__ == "__main__":
    main()
