"""What the server gives its clients: tokens a second, time to the first token, time between tokens; and goodput under deadlines.

`shoestring serve` runs as a process of its own; the clients are here, over HTTP on the loopback, with streams. Prompts are of
random words, each another, so that no beginning is shared; every answer has as many tokens as are asked for.

    closed        so many clients, each of which asks again as soon as it has its answer
    poisson       requests that come at random, at --loads times the rate of the largest closed loop, each of use only within
                  --patience times what an answer takes alone; --policies admit (the server is told, and refuses what cannot be
                  met) and fifo (it is not, and what comes too late counts for nothing). Beside the mean time of fifo stands what
                  the queueing models say: one request after the other (M/G/1), and batches of all that wait.
    llama         llama.cpp's server in closed loops: `llama-server` where it is on the PATH, with as many slots as rows, else that
                  of its Python package, which answers one request at a time
    transformers  its continuous batching (`generate_batch`) on as many prompts, which has no clients

    python bench/serve.py --json serve.json                   # all parts, in less than 8 minutes
    python bench/serve.py --parts closed llama --clients 1 8
"""

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve_clients import Asked, closed, poisson
from serve_peers import ends_of, llama_cpp, llama_server, ours, transformers_rates

from shoestring.budget.machine import probe
from shoestring.decode.queueing import Batching, ServiceTime, delay
from shoestring.errors import UsageError
from shoestring.train.run_folder import environment

PARTS = ("closed", "poisson", "llama", "transformers")


def read(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", default="smollm2", help="the model, default smollm2")
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS, help="what to run, default all")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32], help="of closed loops, default 1 8 32")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a closed loop, or of arrivals; default 20")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt, about; default 128")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer, default 64")
    parser.add_argument(
        "--loads", type=float, nargs="*", default=[0.5, 1.0, 2.0], help="of Poisson arrivals, default 0.5 1 2"
    )
    parser.add_argument("--arrivals", type=int, default=12, help="requests of each load, at least; default 12")
    parser.add_argument("--patience", type=float, default=4.0, help="deadlines, in times of an answer alone, default 4")
    parser.add_argument("--policies", nargs="*", default=["admit", "fifo"], choices=("admit", "fifo"))
    parser.add_argument("--rows", type=int, default=32, help="answers that our server works on at a time, default 32")
    parser.add_argument("--limit", type=float, default=90.0, help="seconds that transformers may take, default 90")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "packed"), help="of our weights")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, environment and every figure there")
    parser.add_argument("--smallest", action="store_true", help="see that it works, no more")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    found = parser.parse_args(words)
    if found.smallest:
        found.clients, found.seconds, found.prompt, found.tokens = [1, 2], 0.5, 8, 4
        found.loads, found.arrivals = [0.5], 2
    if "poisson" in found.parts and "closed" not in found.parts:
        parser.error("--parts poisson needs closed: loads are shares of its rate")
    return found


def service_of(rows: Sequence[dict[str, Any]], tokens: int) -> ServiceTime:
    """How long a batch takes, of what clients saw in closed loops: the time between tokens is a line in their number."""
    one, many = rows[0], rows[-1]
    apart = many["clients"] - one["clients"]
    beside = max(0.0, (many["between"] - one["between"]) / apart) if apart else 0.0
    step = max(1e-9, one["between"] - beside * one["clients"])
    # a prompt is read before the first token; what is left of that is the first step
    each = max(0.0, one["first"] - step - beside)
    return ServiceTime(0.0, each, step, beside)


def predicted(load: float, rate: float, service: ServiceTime, rows: int, tokens: int) -> dict[str, float | None]:
    """Mean seconds to an answer by each model of a queue; None where it would grow for ever."""
    lengths, found = [0.0] * tokens + [1.0], dict[str, float | None]()
    for name, batching in (("one by one", Batching()), ("batches", Batching(1, rows))):
        try:
            found[name] = delay(rate, lengths, service, batching).total
        except UsageError:
            found[name] = None
    return found


def loops(address: str, options: argparse.Namespace, asked: Asked) -> list[dict[str, Any]]:
    """Closed loops of each number of clients."""
    asyncio.run(closed(address, 1, 0.0, asked))  # nobody's figure: what is slow the first time
    rows = []
    for clients in options.clients:
        rows.append({"clients": clients, **asyncio.run(closed(address, clients, options.seconds, asked))})
        print(f"  {clients} clients: {rows[-1]['rate']:.1f} tokens/s", flush=True)
    return rows


def goodput(address: str, rows: Sequence[dict[str, Any]], options: argparse.Namespace, asked: Asked) -> list[Any]:
    """Poisson arrivals of each load, under each policy."""
    alone = rows[0]["first"] + options.tokens * rows[0]["between"]
    capacity = max(row["rate"] for row in rows) / options.tokens
    service, found = service_of(rows, options.tokens), []
    for load in options.loads:
        for policy in options.policies:
            rate, patience = load * capacity, options.patience * alone
            made = asyncio.run(
                poisson(address, rate, options.seconds, options.arrivals, patience, asked, told=policy == "admit")
            )
            said = predicted(load, rate, service, options.rows, options.tokens) if policy == "fifo" else {}
            found.append(
                {"load": load, "rate_asked": rate, "patience": patience, "policy": policy, "predicted": said, **made}
            )
            print(f"  load {load:g}, {policy}: {made['share']:.0%} in time", flush=True)
    return found


def child(options: argparse.Namespace) -> None:
    """transformers' part, in a process that can be ended."""
    asked = Asked("model", options.prompt, options.tokens, {})
    counts = transformers_rates(options.place, options.child, options.clients, asked, options.limit)
    print(json.dumps(counts))


def transformers(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second by the number of prompts; none where it did not run in time."""
    dtype = "float32" if options.dtype == "packed" else options.dtype
    words = [sys.executable, __file__, *sys.argv[1:], "--child", dtype]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=2 * options.limit)
    except subprocess.TimeoutExpired:
        print(f"transformers was not done in {2 * options.limit:g} s")
        return {}
    if done.returncode:
        print(f"transformers did not run: {(done.stderr.strip().splitlines() or [''])[-1][:200]}")
        return {}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def show(name: str, rows: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        ours_ = next((one["rate"] for one in base if one["clients"] == row["clients"]), None)
        times = " ".join(f"{1e3 * row[key]:>7.0f}ms" for key in ("first", "first_p99", "between", "between_p99"))
        over = "" if ours_ is None or base is rows else f"  ours is {ours_ / row['rate']:.2f}x"
        print(f"{name:12} {row['clients']:>7} {row['rate']:>9.1f} {times}{over}")


def main() -> None:
    options = read()
    if options.child:
        child(options)
        return
    found: dict[str, Any] = {"closed": [], "poisson": [], "llama": [], "transformers": {}}
    asked = Asked(
        "model", options.prompt, options.tokens, {"ignore_eos": True, "stream_options": {"include_usage": True}}
    )
    if "closed" in options.parts:
        print("shoestring serve", flush=True)
        with ours(options.place, options.dtype) as address:
            found["closed"] = loops(address, options, asked)
            if "poisson" in options.parts:
                found["poisson"] = goodput(address, found["closed"], options, asked)
    if "llama" in options.parts:
        print("llama.cpp's server", flush=True)
        own = llama_server() is not None
        never = {"logit_bias": {str(token): -100 for token in ends_of(options.place)}, "logit_bias_type": "input_ids"}
        # its own server has `ignore_eos`, too; nothing is to be found in its cache of prompts
        more = {**asked.more, "cache_prompt": False} if own else never
        theirs = Asked("model", options.prompt, options.tokens, more, counted=own)
        context = 2 * options.prompt + options.tokens if own else 2 * (options.prompt * 2 + options.tokens)
        try:
            with llama_cpp(options.place, context, max(options.clients), probe().threads, 60.0) as address:
                found["llama"] = loops(address, options, theirs)
        except SystemExit as error:
            print(error)
    if "transformers" in options.parts:
        found["transformers"] = transformers(options)
    print(f"{'server':12} {'clients':>7} {'tokens/s':>9} {'first':>9} {'p99':>9} {'between':>9} {'p99':>9}")
    show("shoestring", found["closed"], found["closed"])
    show("llama.cpp", found["llama"], found["closed"])
    for count, rate in found["transformers"].items():
        print(f"{'transformers':12} {count:>7} " + ("   not within its time" if rate is None else f"{rate:>9.1f}"))
    if found["poisson"]:
        print(
            f"{'load':>7} {'policy':8} {'good/s':>7} {'in time':>8} {'refused':>8} {'late':>5} {'mean':>8}  by the models"
        )
    for row in found["poisson"]:
        said = ", ".join(f"{name} {'no end' if s is None else f'{s:.2f} s'}" for name, s in row["predicted"].items())
        print(
            f"{row['load']:>7} {row['policy']:8} {row['good']:>7.3f} {row['share']:>8.0%} {row['refused']:>8} "
            f"{row['late']:>5} {row['total']:>7.2f}s  {said}"
        )
    if options.json:
        about = {"settings": {**vars(options), "json": None}, "environment": environment(probe())}
        options.json.write_text(json.dumps({**about, **found}, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
