"""Tokens a second of a model whose experts do not all lie in memory, beside the same model whole, by policy and share.

The model is trained here for --budget (an untrained router asks for experts at random, which no policy can foretell), or is
--place. Each arm opens it anew and puts its experts away; all write the same --texts prompts of held-out text, --tokens each, one
row at a time, in turns. Told of each: tokens a second, the median over prompts and rounds, and their ratio to the whole model's;
the share of experts that were found in memory; bytes read from the file a token; seconds waited.

The system keeps pages of the file in memory that is free, so reading is copying here; where memory is full the disk is read.

    python bench/expert_offload.py --out runs/offload --json offload.json       # four minutes on two quiet cores
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from shoestring import atomic
from shoestring.base import open_model
from shoestring.base.text import read_text
from shoestring.config import Choice
from shoestring.contract.model import LanguageModule
from shoestring.data.config import DataConfig
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.expert_store import ExpertConfig, ExpertStore, put_experts_away
from shoestring.method import methods

GREEDY = Sampling(temperature=0)
CHARACTERS = 200_000
"""Of held-out text, from which prompts are taken."""


def trained(options: argparse.Namespace) -> str:
    """The folder of the run that trains the model, made unless it is there."""
    folder: Path = options.out / "model"
    if not (folder / "summary.json").exists():
        sizes = {"layers": options.layers, "width": options.width, "heads": max(1, options.width // 64)}
        words = [f"--model.{key}={value}" for key, value in {**sizes, "context": options.context}.items()]
        words += ["--model.channel_mixer=moe", f"--model.channel_mixer.experts={options.experts}"]
        resume = ["--resume", str(folder)] if (folder / "config.toml").exists() else None
        command = resume or ["--budget", options.budget, *words, *options.more.split(), "--out", str(folder)]
        subprocess.run([sys.executable, "-m", "shoestring", "train", *command], check=True)
    return str(folder)


def opened(place: str, policy: str, share: float) -> tuple[LanguageModule, ExpertStore | None]:
    """The model, and where its experts lie; None: in memory."""
    model = open_model(place, torch.float32).model
    assert isinstance(model, LanguageModule)
    choice = Choice.of("decode", policy, kind="expert policy")
    config = ExpertConfig(memory=f"{100 * share:g}%", policy=choice) if share < 1 else ExpertConfig()
    return model, put_experts_away(model, config)


def prompts(place: str, count: int, length: int) -> list[tuple[int, ...]]:
    """So many beginnings of held-out text, of so many tokens each."""
    tokenizer = open_model(place, torch.float32).tokenizer
    assert tokenizer is not None
    found = list[tuple[int, ...]]()
    for text in read_text(DataConfig(), CHARACTERS).documents:
        ids = tokenizer.encode(text)[:length]
        if len(ids) == length:
            found.append(tuple(ids))
        if len(found) == count:
            break
    return found


def main(words: Sequence[str] | None = None) -> int:
    policies = [card.name for card in methods("decode", "expert policy")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", help="a model with experts; default: one that is trained here")
    parser.add_argument("--budget", default="1Mtok", help="that it is trained for (default 1Mtok)")
    parser.add_argument("--more", default="", help="more words for its training, as one string")
    for name, value in (("layers", 6), ("width", 256), ("context", 256), ("experts", 16)):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"of that model (default {value})")
    parser.add_argument(
        "--shares", nargs="+", type=float, default=[0.5, 0.25], help="of each layer's experts in memory"
    )
    parser.add_argument("--policies", nargs="+", default=policies, choices=policies)
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--tokens", type=int, default=96, help="that are written after each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/offload"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--smallest", action="store_true", help="does it run? nothing that it prints is a measurement")
    options = parser.parse_args(words)
    if options.smallest:
        options.layers, options.width, options.context, options.experts, options.budget = 2, 64, 64, 4, "4ktok"
        options.texts, options.prompt, options.tokens, options.rounds, options.shares = 1, 8, 4, 1, [0.5]
        options.more = "--train.batch=2 --train.heldout_tokens=512 --train.sample_tokens=0 --execution.compile=none"
    place = options.place or trained(options)
    texts = prompts(place, options.texts, options.prompt)
    arms: dict[str, tuple[LanguageModule, ExpertStore | None]] = {"whole": opened(place, policies[0], 1.0)}
    for share in options.shares:
        arms |= {f"{policy} {share:.0%}": opened(place, policy, share) for policy in options.policies}
    rates: dict[str, list[float]] = {name: [] for name in arms}
    answers: dict[str, list[tuple[int, ...]]] = {name: [] for name in arms}
    written = 0
    for _ in range(options.rounds):
        for text in texts:
            for name, (model, _store) in arms.items():
                engine = Engine(model, rows=1)
                began = time.perf_counter()
                (answer,) = engine.run([Request(text, GREEDY, options.tokens)])
                rates[name].append(len(answer.tokens) / (time.perf_counter() - began))
                answers[name].append(answer.tokens)
            written += options.tokens
    found = dict[str, dict[str, Any]]()
    for name, (_, store) in arms.items():
        alike = sum(a == b for a, b in zip(answers[name], answers["whole"], strict=True)) / len(answers[name])
        row: dict[str, Any] = {"tokens_a_second": median(rates[name]), "same_text": alike}
        row["ratio"] = row["tokens_a_second"] / median(rates["whole"])
        if store is not None:
            row |= {"hits": store.found / max(store.asked, 1), "memory": store.memory, "whole": store.whole}
            row |= {"read_a_token": store.read / written, "waited": store.waited}
        found[name] = row
        more = (
            "" if store is None else f", {row['hits']:.1%} in memory, {row['read_a_token'] / 1e6:.2f} MB read a token"
        )
        print(f"{name:18} {row['tokens_a_second']:8.1f} tokens/s, {row['ratio']:.2f} of the whole model's{more}")
    if options.json:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        atomic.write_text(options.json, json.dumps({"settings": settings, "arms": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
