"""Every part of `model/` in one small model, at equal FLOPs on one core: loss, ms a token, bytes that serving holds.

Each arm is the same Transformer with one thing changed: a token mixer in all layers but every third ('hybrid' arms) or in all,
a channel mixer, a router, a norm, a residual, an embedding, a span (but `space_byte`, which reads bytes). It is trained by Muon
for matrices and AdamW for the rest, at learning rates of --factors times the optimisers' own, until it has spent --flops; the best
held-out loss counts, and all are in the line. An arm whose step costs more takes fewer steps: that is what equal FLOPs means.
Seeds give every arm the same data order.

Then, of the trained model: milliseconds of one more token with --contexts tokens read before it, the median of --tokens of
them in one row, and the bytes of cache and state that are held there, beside those of the weights. --time-again measures that
anew, of models that are not trained, when the machine has nothing else to do: training may run beside other work.

Every run is a line of --out, and what is there is not run again.
"""

import argparse
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from run_lines import RunLines, add_flags, settings
from torch import nn
from torch.nn import functional as F

from shoestring.budget.machine import cache_folder, probe
from shoestring.config import build
from shoestring.contract.batch import Inputs
from shoestring.contract.cost import Shape, bytes_of
from shoestring.data.config import DataConfig
from shoestring.data.dataset import Dataset
from shoestring.data.prepare import prepare
from shoestring.data.windows import Windows
from shoestring.method import methods
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.optim import AdamW, Muon, partition
from shoestring.optim.composite import scale_learning_rates
from shoestring.schedule.wsd import WSD
from shoestring.train.evaluate import HELDOUT_ORDER
from shoestring.train.run_folder import environment


def arms() -> dict[str, dict[str, Any]]:
    """What each arm changes of the dense model, by name: one for every registered part."""
    found: dict[str, dict[str, Any]] = {"dense": {}}
    for card in methods("model", "token mixer"):
        if card.name != "attention":
            found[card.name] = {"token_mixer": card.name}
            found[f"{card.name} hybrid"] = {
                "token_mixer": card.name,
                "pattern": [{"at": "2::3", "token_mixer": "attention"}],
            }
    for card in methods("model", "channel mixer"):
        if card.name == "tied":  # the first layer leads all others
            follows = {"name": "tied", "leads": False}
            found["tied"] = {"channel_mixer": follows, "pattern": [{"at": "0", "channel_mixer": "tied"}]}
        elif card.name not in ("swiglu", "moe"):
            found[card.name] = {"channel_mixer": card.name}
    for card in methods("model", "router"):
        found[f"moe {card.name}"] = {"channel_mixer": {"name": "moe", "router": card.name}}
    for card in methods("model", "embedding"):
        found[f"embedding {card.name}"] = {"embedding": card.name}
    for kind, key in (("norm", "norm"), ("residual", "residual")):
        for card in methods("model", kind):
            if card.name not in ("rmsnorm", "pre_norm"):
                found[f"{kind} {card.name}"] = {key: card.name}
    for card in methods("model", "span"):
        if card.name == "space_byte":
            continue
        first = card.name == "scone" or getattr(card.target, "replaces_embedding", False)
        found[card.name] = {"span": [{"at": "0" if first else "1:-1", "name": card.name}]}
    return found


def frequent(dataset: Dataset, count: int) -> list[str]:
    """The pairs of tokens that are most frequent in the first million, as the span `scone` takes them."""
    ids = np.empty(min(len(dataset.train), 1 << 20), dtype=np.int64)
    dataset.train.read(0, len(ids), ids)
    pairs, times = np.unique(ids[:-1] * dataset.tokenizer.vocabulary + ids[1:], return_counts=True)
    best = pairs[np.argsort(-times, kind="stable")[:count]]
    return [f"{pair // dataset.tokenizer.vocabulary} {pair % dataset.tokenizer.vocabulary}" for pair in best.tolist()]


def heldout(model: Transformer, windows: Windows, count: int) -> float:
    """Nats a token, each window read by itself."""
    model.eval()
    total = 0.0
    with torch.no_grad():
        for number in range(count):
            data = windows.batch(number, 1)
            total += float(F.cross_entropy(model(data.inputs.values).flatten(0, 1), data.targets.flatten()))
    return total / count


def train(
    model: Transformer, factor: float, options: argparse.Namespace, dataset: Dataset, seconds: float | None = None
) -> tuple[float, int]:
    """(held-out loss, steps) once the FLOPs are spent, or the seconds."""
    optimizer = partition(model, Muon, AdamW).build()
    base = [group["lr"] for group in optimizer.param_groups]
    windows = Windows(dataset.train, options.context, options.seed)
    each = model.cost(Shape(options.batch, options.context, backward=True)).flops + optimizer.step_flops()
    steps = max(1, int(options.flops / each))
    schedule, step, began = WSD(), 0, time.monotonic()
    while (spent := step / steps if seconds is None else (time.monotonic() - began) / seconds) < 1:
        model.train()
        data = windows.batch(step * options.batch, options.batch)
        reading = model.read(data.inputs)
        loss = F.cross_entropy(reading.logits().flatten(0, 1), data.targets.flatten())
        auxiliary = reading.auxiliary()
        (loss if auxiliary is None else loss + auxiliary).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr
        scale_learning_rates(optimizer, factor * schedule(spent))
        optimizer.step()
        optimizer.zero_grad()
        step += 1
    held = Windows(dataset.heldout, options.context, HELDOUT_ORDER)
    return heldout(model, held, options.heldout_windows), step


def serving(model: Transformer, past: int, tokens: int) -> dict[str, Any]:
    """Milliseconds of a token after `past` of them, and the bytes that are held."""
    model.eval()
    cache = model.new_cache(1, past + tokens)
    times = []
    with torch.no_grad():
        for first in range(0, past, 512):
            model.read(Inputs(torch.zeros(1, min(512, past - first), dtype=torch.int64)), cache)
        one = torch.zeros(1, 1, dtype=torch.int64)
        for _ in range(tokens):
            began = time.perf_counter()
            model.read(Inputs(one), cache).logits()
            times.append(time.perf_counter() - began)
    state = model.cost(Shape(1, 0, past)).held - bytes_of(model)
    return {"past": past, "ms_a_token": 1e3 * median(times), "state_bytes": state}


def contexts_of(name: str, options: argparse.Namespace) -> list[int]:
    """Tokens before the one that is timed. Weights of 'mlp_mixer' grow with the square of the context: it is served at that of
    training alone."""
    short = arms()[name].get("token_mixer") == "mlp_mixer"
    return [past for past in options.contexts if not short or past + options.tokens <= options.context]


def configuration(name: str, options: argparse.Namespace, dataset: Dataset) -> ModelConfig:
    """The model of an arm."""
    changes = arms()[name]
    if name == "scone":
        changes = {"span": [{**one, "ngrams": frequent(dataset, options.ngrams)} for one in changes["span"]]}
    sizes = {
        "layers": options.layers,
        "width": options.width,
        "heads": options.width // 32,
        "vocabulary": dataset.tokenizer.vocabulary,
        "context": max([options.context, *(past + options.tokens for past in contexts_of(name, options))]),
    }
    return build(ModelConfig, {**sizes, **changes})


def run(name: str, options: argparse.Namespace, dataset: Dataset) -> dict[str, Any]:
    """One arm, as a line of the file; what it could not do is in it, too."""
    contexts, config = contexts_of(name, options), configuration(name, options, dataset)
    losses = {}
    for factor in options.factors:
        torch.manual_seed(options.seed)
        model = Transformer(config)
        losses[str(factor)], steps = train(model, factor, options, dataset)
    return {
        "arm": name,
        "loss": min(losses.values()),
        "losses": losses,
        "steps": steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops_a_token": model.cost(Shape(1, options.context, backward=True)).flops / options.context,
        "serving": [serving(model, past, options.tokens) for past in contexts],
        "settings": shared(options),
    }


def shared(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that make runs comparable."""
    return settings(options, "arms", "time_again")


def table(lines: Sequence[dict[str, Any]]) -> None:
    """The arms, the lowest loss first."""
    print("arm | loss | steps | parameters | ms a token | state bytes")
    for line in sorted(lines, key=lambda line: float(line["loss"])):
        speeds = ", ".join(f"{one['ms_a_token']:.2f} at {one['past']}" for one in line["serving"])
        held = ", ".join(f"{one['state_bytes']:,}" for one in line["serving"])
        print(f"{line['arm']} | {line['loss']:.4f} | {line['steps']} | {line['parameters']:,} | {speeds} | {held}")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "evidence/architectures/runs.jsonl")
    parser.add_argument("--arms", nargs="+", choices=list(arms()), metavar="ARM", help="some of them, default all")
    parser.add_argument("--flops", type=float, default=2e13, help="of a run, default 2e13")
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=[256, 4096], help="tokens before the one that is timed"
    )
    parser.add_argument(
        "--factors", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="on learning rates (default 0.5 1 2)"
    )
    parser.add_argument(
        "--time-again", action="store_true", help="only the milliseconds, of what is in --out, for --json"
    )
    numbers = {"layers": 6, "width": 128, "context": 256, "batch": 16, "vocabulary": 2048, "heldout-windows": 64}
    numbers |= {"tokens": 32, "seed": 0, "ngrams": 512}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    options = parser.parse_args(words)
    if options.smallest:
        small: dict[str, Any] = {"flops": 1.0, "layers": 3, "width": 32, "context": 32, "batch": 2, "vocabulary": 1024}
        vars(options).update({**small, "heldout_windows": 2, "contexts": [8], "tokens": 2})
    torch.set_num_threads(1)
    runs = RunLines(options.out, shared(options))
    if options.time_again:
        dataset = prepare(DataConfig(vocabulary=options.vocabulary), cache_folder())
        for line in runs.lines:
            torch.manual_seed(options.seed)
            model = Transformer(configuration(line["arm"], options, dataset))
            line["serving"] = [serving(model, past, options.tokens) for past in contexts_of(line["arm"], options)]
    elif not options.show:
        dataset = prepare(DataConfig(vocabulary=options.vocabulary), cache_folder())
        made = {line["arm"] for line in runs.lines}
        for name in options.arms or list(arms()):
            if name not in made:
                runs.add(run(name, options, dataset))
                print(f"{name}: {runs.lines[-1]['loss']:.4f}", flush=True)
    table(runs.lines)
    runs.keep(options.json, shared(options), lambda: environment(probe()))


if __name__ == "__main__":
    main()
