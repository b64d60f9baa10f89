"""Few unique tokens, many epochs: does masked diffusion overtake next-token prediction, and after how many FLOPs?

Jinjie Ni et al., Diffusion Language Models are Super Data Learners, arXiv:2511.03276. Both arms are one Transformer (of masked
diffusion it sees both ways, and has a vector for hidden tokens), on the same first --unique tokens of the corpus, in the same order
of windows, with AdamW, one learning rate after a warm-up, no decay and no dropout, until each has spent --flops. Held-out text is
judged as often as --points says, each time at the same FLOPs of both, the epochs that this makes beside.

What is judged are the same tokens of the same windows: all but the first of a window. Of next tokens it is the negative
log-likelihood, in nats a token; of masked diffusion an upper bound of it, estimated from --draws masks a window. So a crossing that
is seen is one, but for the masks' noise: the true figure of masked diffusion is below its bound. One that is not seen may yet be
there.

Two crossings are reported of each pair. 'as trained': the FLOPs from which on the bound stays below the other's loss at equal
FLOPs, to the end. 'stopped early': the same of the lowest figure of each so far, which is what one who keeps the best checkpoint
has. A crossing has no more precision than the points. That none was seen within the FLOPs is a result too.

Every run is a line of --out, and what is there is not run again.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from run_lines import RunLines, add_flags, settings
from three_domains import untimed_environment
from torch import nn
from torch.nn import functional as F

from shoestring.budget.ledger import MODEL
from shoestring.budget.machine import cache_folder
from shoestring.config import build
from shoestring.contract.objective import At
from shoestring.data.config import DataConfig
from shoestring.data.dataset import Dataset
from shoestring.data.prepare import prepare
from shoestring.data.store import TokenStore
from shoestring.data.windows import Windows
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.objective.cross_entropy import plain
from shoestring.objective.masked_diffusion import MaskedDiffusion
from shoestring.objective.next_token import NextToken
from shoestring.optim import AdamW
from shoestring.train.evaluate import HELDOUT_ORDER

NEXT, MASKED = "next_token", "masked_diffusion"
CHANGES: dict[str, dict[str, Any]] = {NEXT: {}, MASKED: {"causal": False, "hides": True}}
WARMUP = 0.02
"""Share of the FLOPs over which the learning rate rises."""


def few(store: TokenStore, count: int) -> TokenStore:
    """The first `count` tokens of a store. Raises: SystemExit where it has fewer."""
    if len(store) < count:
        raise SystemExit(f"the corpus has {len(store):,} tokens to train on: ask for fewer than {count:,} unique ones")
    ids = np.empty(count, dtype=np.int64)
    store.read(0, count, ids)
    return TokenStore.of([ids[:-1].tolist()], int(ids[-1]))


@torch.no_grad()
def judged(name: str, model: Transformer, windows: Windows, count: int, draws: int) -> float:
    """Nats a token of held-out windows, the first token of each not among them."""
    model.eval()
    judge, nats, tokens = MaskedDiffusion(plain, draws=draws), 0.0, 0
    for number in range(count):
        batch = windows.batch(number, 1)
        if name == MASKED:
            found = judge.judge(model, batch)
            nats, tokens = nats + float(found.nats.sum()), tokens + batch.inputs.length - 1
        else:
            logits = model(batch.inputs.values)[0, :-1]
            nats += float(F.cross_entropy(logits, batch.targets[0, :-1], reduction="sum"))
            tokens += len(logits)
    return nats / tokens


def run(name: str, unique: int, seed: int, options: argparse.Namespace, dataset: Dataset) -> dict[str, Any]:
    """One arm on so many unique tokens, as a line of the file."""
    sizes = {"layers": options.layers, "width": options.width, "heads": max(1, options.width // 32)}
    sizes |= {"vocabulary": dataset.tokenizer.vocabulary, "context": options.context}
    torch.manual_seed(seed)
    model = Transformer(build(ModelConfig, {**sizes, **CHANGES[name]}))
    optimizer = AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    windows = Windows(few(dataset.train, unique), options.context, seed)
    held = Windows(dataset.heldout, options.context, HELDOUT_ORDER)
    objective: Callable[..., Any] = MaskedDiffusion(plain) if name == MASKED else NextToken(plain)
    points: list[dict[str, float]] = []
    spent, step, marks = 0.0, 0, marked(options.flops, options.points)
    while len(points) < len(marks):
        model.train()
        batch = windows.batch(step * options.batch, options.batch)
        loss = objective(model, batch, At(step, min(1.0, spent / options.flops), seed))
        loss.total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1.0, (spent / options.flops + 1e-3) / WARMUP)
        optimizer.step()
        optimizer.zero_grad()
        spent, step = spent + loss.spent[MODEL].flops, step + 1
        trained: float | None = None
        while len(points) < len(marks) and spent >= marks[len(points)]:
            if trained is None:
                trained = judged(name, model, held, options.heldout_windows, options.draws)
            epochs = step * options.batch / len(windows)
            points.append(
                {"flops": marks[len(points)], "epochs": epochs, "loss": trained, "training": float(loss.mean.detach())}
            )
    about = {"arm": name, "unique": unique, "seed": seed, "steps": step, "flops": spent}
    return {
        **about,
        "parameters": sum(p.numel() for p in model.parameters()),
        "points": points,
        "settings": shared(options),
    }


def marked(flops: float, points: int) -> list[float]:
    """The FLOPs at which is judged: each half as many again or more as the one before, the last `flops`."""
    return [flops * 2 ** ((number - points + 1) / 2) for number in range(points)]


def crossing(ours: Sequence[float], theirs: Sequence[float]) -> int | None:
    """The first place from which on `ours` stays below `theirs`; None: it ends above, or as high. 0: it never was above."""
    found = None
    for place in reversed(range(len(ours))):
        if ours[place] >= theirs[place]:
            break
        found = place
    return found


def crossings(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each pair of runs, one of each arm on the same tokens with the same seed: where it crosses, in both ways."""
    known = {(line["arm"], line["unique"], line["seed"]): line for line in lines}
    found = []
    for (arm, unique, seed), line in known.items():
        other = known.get((MASKED, unique, seed))
        if arm != NEXT or other is None:
            continue
        mine, theirs = ([point["loss"] for point in one["points"]] for one in (other, line))
        best = [list(np.minimum.accumulate(losses)) for losses in (mine, theirs)]
        each: dict[str, Any] = {"unique": unique, "seed": seed, "lowest": {NEXT: min(theirs), MASKED: min(mine)}}
        for way, place in (("as trained", crossing(mine, theirs)), ("stopped early", crossing(*best))):
            point = None if place is None else other["points"][place]
            each[way] = None if point is None else {"place": place, "flops": point["flops"], "epochs": point["epochs"]}
        found.append(each)
    return found


def show(lines: Sequence[dict[str, Any]]) -> None:
    """Losses by FLOPs, and where they cross."""
    for line in lines:
        points = ", ".join(f"{point['loss']:.3f} at {point['epochs']:.3g}" for point in line["points"])
        print(f"{line['arm']}, {line['unique']:,} unique tokens, seed {line['seed']}: nats a token by epochs: {points}")
    for one in crossings(lines):
        for way in ("as trained", "stopped early"):
            at = one[way]
            if at is None:
                words = "none seen"
            elif not at["place"]:
                words = "none seen, as masked diffusion is below at every point"
            else:
                words = f"at {at['flops']:.2e} FLOPs, {at['epochs']:.3g} epochs of masked diffusion"
            print(f"{one['unique']:,} unique tokens, seed {one['seed']}: crossing {way}: {words}")


def shared(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that make runs comparable."""
    return settings(options, "arms", "unique", "seeds")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "evidence/crossover/runs.jsonl")
    parser.add_argument("--arms", nargs="+", choices=list(CHANGES), default=list(CHANGES), help="default both")
    parser.add_argument(
        "--unique", type=int, nargs="+", default=[65536, 262144], help="unique tokens, default 65536 262144"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default 0")
    parser.add_argument("--flops", type=float, default=2e13, help="of a run, default 2e13")
    parser.add_argument("--lr", type=float, default=1e-3, help="default 1e-3")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="default 0.1")
    numbers = {"layers": 4, "width": 128, "context": 128, "batch": 16, "vocabulary": 1024, "points": 12}
    for name, value in {**numbers, "heldout-windows": 64, "draws": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    options = parser.parse_args(words)
    if options.smallest:
        small: dict[str, Any] = {"flops": 2e8, "layers": 1, "width": 32, "context": 32, "batch": 2, "points": 3}
        vars(options).update({**small, "unique": [256], "heldout_windows": 2, "draws": 2})
    if min(options.points, options.batch, options.heldout_windows, options.draws) < 1 or options.flops <= 0:
        raise SystemExit("--points, --batch, --heldout-windows, --draws and --flops are at least 1")
    torch.set_num_threads(1)
    runs = RunLines(options.out, shared(options))
    if not options.show:
        dataset = prepare(DataConfig(vocabulary=options.vocabulary), cache_folder())
        made = {(line["arm"], line["unique"], line["seed"]) for line in runs.lines}
        for unique in options.unique:
            for seed in options.seeds:
                for name in options.arms:
                    if (name, unique, seed) not in made:
                        runs.add(run(name, unique, seed, options, dataset))
                        print(f"{name}, {unique:,} unique tokens, seed {seed}: done", flush=True)
    show(runs.lines)
    runs.keep(options.json, shared(options), untimed_environment, crossings=crossings(runs.lines))


if __name__ == "__main__":
    main()
