"""Loss against bytes: every way to quantise a trained model, at 8, 4, 3 and 2 bits, on the same text, in the model's own numbers.

Each way begins with the model as it is, and is calibrated on the same windows; the loss is of other documents of the same
held-out text, in float32 with plain matrices (`shoestring quantise` measures the packed model, whose products round
activations). 'bytes' are those of the matrices of the layers, scales and all; embedding and head stay as they are. Seconds are
of quantising, peak memory of the process by then. A way that has no such bits is left out. Way 'plain' is the model before.

    python bench/quantise.py --places 1.5m 10m --json quantise.json
    python bench/quantise.py --places smollm2 --bits 3 2 --ways rtn gptq
    python bench/quantise.py --smallest                     # a hardly trained model, few tokens: does it run?

Peers (GPTQModel, AutoRound, llama.cpp) are not run by this bench. llama.cpp's block formats are among the ways ('q4_k', 'q4_0').
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from reference_models import NAMES, reference_model

from shoestring import atomic
from shoestring.base import Opened, open_model
from shoestring.base.likelihood import likelihood
from shoestring.base.text import read_text
from shoestring.budget.ledger import peak_memory
from shoestring.budget.machine import probe
from shoestring.config import Choice
from shoestring.data.config import DataConfig
from shoestring.errors import UsageError
from shoestring.quantise.conduct import plain_module
from shoestring.quantise.engine import Recipe, quantise_layers
from shoestring.quantise.limits import limits_of
from shoestring.quantise.target import BitTarget
from shoestring.quantise.text import QuantiseText, split_text
from shoestring.train.run_folder import environment

LEAST = 200_000
"""Characters of text, at least: several documents."""


@dataclass(frozen=True)
class Way:
    """format, solver, transform, bits: names and options of the parts. widths: the bits that it is tried at; empty: all. more:
    added to
    the bits that are asked for, where widths are mixed."""

    format: dict[str, Any]
    solver: str = "gptq"
    transform: str = "none"
    bits: str = "uniform"
    widths: tuple[int, ...] = ()
    more: float = 0.0


GROUPS = {"name": "integer_groups", "group": 64}
MIXED = 0.5
WAYS: dict[str, Way] = {
    "rtn": Way(GROUPS, "rtn"),
    "gptq": Way(GROUPS),
    "nupes": Way({"name": "power_groups"}, "nupes"),
    "nupes, equal steps": Way(GROUPS, "nupes"),
    "power_groups, gptq": Way({"name": "power_groups"}),
    "finequant": Way({"name": "adaptive_groups"}, "rtn"),
    "symmetric, gptq": Way({**GROUPS, "group": 32, "symmetric": True}),
    "hadamard": Way(GROUPS, transform="hadamard"),
    "rotation": Way(GROUPS, transform="rotation"),
    "flatquant": Way(GROUPS, transform="flatquant"),
    "equivalent_scaling": Way(GROUPS, transform="equivalent_scaling"),
    "mx": Way({"name": "microscaling"}, widths=(4, 6, 8)),
    "mx, rtn": Way({"name": "microscaling"}, "rtn", widths=(4, 6, 8)),
    "q4_0": Way({**GROUPS, "group": 32, "symmetric": True}, "rtn", widths=(4,)),
    "q4_k": Way({"name": "k_blocks"}, "rtn", widths=(4,)),
    "selective_rtn": Way(GROUPS, "rtn", bits="selective_rtn", widths=(2, 3), more=MIXED),
    "integer_program": Way(GROUPS, bits="integer_program", widths=(2, 3), more=MIXED),
    "amq": Way(GROUPS, bits="amq", widths=(2, 3), more=MIXED),
    "automixq": Way(GROUPS, bits="automixq", widths=(2, 3), more=MIXED),
}


@dataclass(frozen=True)
class Row:
    """What came of a way. bits: asked for. stored: bits a weight, scales and all. loss: nats a token."""

    place: str
    way: str
    bits: float
    stored: float
    bytes: int
    loss: float
    seconds: float
    peak_memory: int


def opened_at(place: str, quick: bool) -> Opened:
    name = str(reference_model(place, quick=quick)) if place in NAMES else place
    return open_model(name, torch.float32)


def recipe(way: Way, bits: float) -> Recipe:
    """The parts at so many bits. Raises: UsageError where a format has none."""
    options = {key: value for key, value in way.format.items() if key != "name"}
    form = Choice.of("quantise", way.format["name"], kind="format", **options).build()
    kinds = ("solver", "transform", "bits")
    parts = {kind: Choice.of("quantise", getattr(way, kind), kind=kind).build() for kind in kinds}
    limits = None
    if bits != int(bits):
        limits = limits_of(BitTarget("bits", bits))
    elif form.bits != bits:
        form = form.at(int(bits))
    return Recipe(form, **parts, limits=limits)


def measured(place: str, name: str, bits: int, options: argparse.Namespace, text: QuantiseText) -> Row | None:
    """One way on one model; None where it has no such bits."""
    way = WAYS[name]
    if way.widths and bits not in way.widths:
        return None
    opened = opened_at(place, options.smallest)
    model = plain_module(opened)
    assert opened.tokenizer is not None
    began = time.perf_counter()
    try:
        done = quantise_layers(model, text.calibration, recipe(way, bits + way.more))
    except UsageError as error:
        print(f"  {name} at {bits + way.more:g} bits: left out: {error}", flush=True)
        return None
    took = time.perf_counter() - began
    size = sum(one.nbytes for one in done.matrices.values())
    weights = sum(one.rows * one.columns for one in done.matrices.values())
    loss = likelihood(model.eval(), opened.tokenizer, text.measured).nats_per_token.value
    return Row(place, name, bits + way.more, 8 * size / weights, size, loss, took, peak_memory())


def plain_row(place: str, options: argparse.Namespace) -> tuple[Row, QuantiseText]:
    """The model before, and the text for all ways."""
    opened = opened_at(place, options.smallest)
    assert opened.tokenizer is not None
    characters = max(LEAST, 8 * (options.calibration + options.measured))
    whole = read_text(DataConfig(), characters)
    context = opened.model.about.context
    text = split_text(whole, opened.tokenizer, context, options.calibration, options.measured)
    model = plain_module(opened)
    size = sum(one.weight.nbytes for one in model.anatomy().matrices())
    loss = likelihood(model.eval(), opened.tokenizer, text.measured).nats_per_token.value
    return Row(place, "plain", 32, 32, size, loss, 0.0, peak_memory()), text


def read(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", nargs="*", default=["1.5m"], help=f"models: {', '.join(NAMES)}, or any place")
    parser.add_argument("--bits", type=int, nargs="*", default=[8, 4, 3, 2], help="default 8 4 3 2")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS), help="default all")
    parser.add_argument("--calibration", type=int, default=8192, help="tokens to calibrate on, default 8192")
    parser.add_argument("--measured", type=int, default=8192, help="tokens to measure on, default 8192")
    parser.add_argument("--smallest", action="store_true", help="a hardly trained model and few tokens")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, environment and every figure there")
    options = parser.parse_args(words)
    if options.smallest:
        options.places, options.bits, options.calibration, options.measured = ["1.5m"], [4, 2], 512, 512
        options.ways = [name for name in options.ways if name in ("rtn", "gptq", "mx, rtn", "selective_rtn")]
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = read(words)
    rows = list[Row]()
    for place in options.places:
        plain, text = plain_row(place, options)
        rows.append(plain)
        print(
            f"{place}: {plain.loss:.4f} nats a token, {plain.bytes:,} bytes in the matrices of its layers", flush=True
        )
        for bits in options.bits:
            for name in options.ways:
                row = measured(place, name, bits, options, text)
                if row is not None:
                    rows.append(row)
                    print(
                        f"  {name:20} {row.bits:4.1f} bits, {row.stored:5.2f} stored {row.bytes:>12,} bytes  "
                        f"{row.loss:8.4f} ({row.loss - plain.loss:+.4f})  {row.seconds:7.1f} s",
                        flush=True,
                    )
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        content = {"settings": settings, "environment": environment(probe()), "rows": [asdict(row) for row in rows]}
        atomic.write_text(options.json, json.dumps(content, indent=1, default=str) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
