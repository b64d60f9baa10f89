"""Clients of a server that answers as OpenAI's does: closed loops and random arrivals, each for so many seconds."""

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

import httpx2 as httpx

WORDS = ("the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "with", "as", "at", "be")


@dataclass(frozen=True)
class Asked:
    """What every request asks. model: its name. prompt: words of it. tokens: of the answer. more: fields of the body, so that no
    answer ends before its tokens are written. counted: whether the server tells how many these were."""

    model: str
    prompt: int
    tokens: int
    more: Mapping[str, Any]
    counted: bool = True


@dataclass
class Answer:
    """What a client saw. began: of asking. pieces: times of the text's pieces. tokens: of them. refused: by the server."""

    began: float
    pieces: list[float] = field(default_factory=list)
    tokens: int = 0
    ended: float = 0.0
    refused: bool = False


def prompt(chance: random.Random, words: int) -> str:
    """Text of about so many tokens, another each time."""
    return " ".join(chance.choice(WORDS) for _ in range(words))


async def _pieces(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


async def ask(client: httpx.AsyncClient, text: str, asked: Asked, seconds: float | None = None) -> Answer:
    """One request, as a stream. seconds: the deadline that the server is told."""
    body: dict[str, Any] = {"model": asked.model, "prompt": text, "max_tokens": asked.tokens, "temperature": 0}
    body |= {"stream": True, **asked.more}
    if seconds is not None:
        body["budget"] = {"seconds": seconds}
    answer = Answer(time.perf_counter())
    async with client.stream("POST", "/v1/completions", json=body, timeout=None) as response:
        if response.status_code == 429:
            answer.refused = True
        elif response.status_code != 200:
            raise SystemExit(f"the server answered {response.status_code}: {(await response.aread()).decode()[:300]}")
        else:
            async for piece in _pieces(response):
                if piece.get("usage"):
                    answer.tokens = int(piece["usage"]["completion_tokens"])
                elif any(choice.get("text") for choice in piece["choices"]) or asked.counted:
                    answer.pieces.append(time.perf_counter())
    answer.ended = time.perf_counter()
    if not asked.counted and not answer.refused:  # a token may bring no text: what was asked for was written
        answer.tokens = asked.tokens
    return answer


def _each_anew(connections: int) -> httpx.Limits:
    """Each request has a connection of its own: some servers close one after an answer without saying so."""
    return httpx.Limits(max_connections=connections, max_keepalive_connections=0)


def percentile(values: Sequence[float], share: float) -> float:
    """Of few values the nearest."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def summed(answers: Sequence[Answer], seconds: float) -> dict[str, float]:
    """Tokens a second, and the median and the 99th percentile of the times to the first token and between tokens."""
    first = [one.pieces[0] - one.began for one in answers if one.pieces]
    gaps = [after - before for one in answers for before, after in itertools.pairwise(one.pieces)]
    return {
        "answers": len(answers),
        "rate": sum(one.tokens for one in answers) / seconds,
        "first": median(first) if first else float("nan"),
        "first_p99": percentile(first, 0.99),
        "between": median(gaps) if gaps else float("nan"),
        "between_p99": percentile(gaps, 0.99),
    }


async def closed(address: str, clients: int, seconds: float, asked: Asked) -> dict[str, float]:
    """So many clients, each of which asks again as soon as it has its answer, for so many seconds; each asks once at least.

    The rate is of whole answers over the time until the last of them.
    """

    async def one(client: httpx.AsyncClient, number: int, until: float) -> list[Answer]:
        chance, found = random.Random(1000 * clients + number), list[Answer]()
        while not found or time.perf_counter() < until:
            found.append(await ask(client, prompt(chance, asked.prompt), asked))
        return found

    async with httpx.AsyncClient(base_url=address, limits=_each_anew(clients + 1)) as client:
        began = time.perf_counter()
        found = await asyncio.gather(*(one(client, number, began + seconds) for number in range(clients)))
        took = time.perf_counter() - began
    return summed([answer for own in found for answer in own], took)


async def poisson(
    address: str, rate: float, seconds: float, least: int, patience: float, asked: Asked, *, told: bool
) -> dict[str, float]:
    """Requests that come at random, `rate` a second for so many seconds and at least so many, each of use only within `patience`
    seconds. told: whether the server is told of that. Goodput is of what was there in time, over the time until the last answer."""
    chance, at, arrivals = random.Random(7), 0.0, list[tuple[float, str]]()
    while at < seconds or len(arrivals) < least:
        at += chance.expovariate(rate)
        arrivals.append((at, prompt(chance, asked.prompt)))

    async def one(client: httpx.AsyncClient, after: float, text: str) -> Answer:
        await asyncio.sleep(after)
        return await ask(client, text, asked, patience if told else None)

    async with httpx.AsyncClient(base_url=address, limits=_each_anew(len(arrivals) + 1)) as client:
        began = time.perf_counter()
        found = await asyncio.gather(*(one(client, *each) for each in arrivals))
        took = time.perf_counter() - began
    taken = [answer for answer in found if not answer.refused]
    # a server may end an answer at its deadline: one with fewer tokens than were asked for is of no use
    good = [one for one in taken if one.ended - one.began <= patience and one.tokens >= asked.tokens]
    return {
        "good": len(good) / took,
        "share": len(good) / len(found),
        "refused": len(found) - len(taken),
        "late": len(taken) - len(good),
        "total": fmean(one.ended - one.began for one in taken) if taken else float("nan"),
        **summed(taken, took),
    }
