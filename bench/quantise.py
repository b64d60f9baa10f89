"""Loss against bytes: every way to quantise a trained model, at 8, 4, 3 and 2 bits, on the same text, in the model's own numbers.

Each way begins with the model as it is, and is calibrated on the same windows; the loss is of other documents of the same
held-out text, in float32 with plain matrices (`shoestring quantise` measures the packed model, whose products round
activations); ways that round activations simulate that. 'bytes' are those of the matrices of the layers, scales and all;
embedding and head stay as they are. Seconds are of quantising, peak memory of the process by then. A way that has no such bits is
left out, and said. Way 'plain' is the model before.

    python bench/quantise.py --places 1.5m 10m --json quantise.json
    python bench/quantise.py --places smollm2 --bits 3 2 --ways rtn gptq
    python bench/quantise.py --smallest                     # a hardly trained model, few tokens: does it run?

With --json every row is kept as it is made: the same command goes on where it was stopped. --seconds ends it before a way that
would begin later; --each ends the calibration of a way, whose other matrices are rounded to the nearest, which its row says.

Peers: llama.cpp's block formats are among the ways ('q4_k', 'q4_0'). AutoRound is one where --autoround names a Python that has
the package auto-round (quantise_autoround.py). GPTQModel 7.7.0 is not run: it has no wheel, and did not build on a machine
without a GPU.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
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
from shoestring.errors import ShoestringError
from shoestring.quantise.conduct import plain_module
from shoestring.quantise.engine import Recipe, quantise_layers
from shoestring.quantise.limits import limits_of
from shoestring.quantise.quantisation import round_inputs
from shoestring.quantise.target import BitTarget
from shoestring.quantise.text import QuantiseText, split_text
from shoestring.shrink.export import export_transformers
from shoestring.train.run_folder import environment

LEAST = 200_000
"""Characters of text, at least: several documents."""


@dataclass(frozen=True)
class Way:
    """format, solver, transform, bits, activations: names and options of the parts. widths: the bits that it is tried at; empty:
    all. more: added to the bits that are asked for, where widths are mixed."""

    format: dict[str, Any]
    solver: str = "gptq"
    transform: str = "none"
    bits: str = "uniform"
    widths: tuple[int, ...] = ()
    more: float = 0.0
    activations: tuple[str, int] = ("none", 0)
    """A name, and bits of an activation."""


AUTOROUND = "autoround"
GROUP = 64
GROUPS = {"name": "integer_groups", "group": GROUP}
MIXED = 0.5
WAYS: dict[str, Way] = {
    "rtn": Way(GROUPS, "rtn"),
    "gptq": Way(GROUPS),
    "nupes": Way({"name": "power_groups"}, "nupes"),
    "nupes, equal steps": Way(GROUPS, "nupes"),
    "gptq, groups of 128": Way({**GROUPS, "group": 128}),
    "nupes, equal steps, groups of 128": Way({**GROUPS, "group": 128}, "nupes"),
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
    "8 bits a token": Way(GROUPS, activations=("token", 8)),
    "8 bits static": Way(GROUPS, activations=("static", 8)),
    "8 bits static, scaled": Way(GROUPS, transform="equivalent_scaling", activations=("static", 8)),
    "4 bits a token": Way(GROUPS, activations=("token", 4), widths=(4,)),
    "4 bits a token, hadamard": Way(GROUPS, transform="hadamard", activations=("token", 4), widths=(4,)),
    "4 bits a token, flatquant": Way(GROUPS, transform="flatquant", activations=("token", 4), widths=(4,)),
    AUTOROUND: Way(GROUPS),
    "automixq": Way(GROUPS, bits="automixq", widths=(2, 3), more=MIXED),
}


SMALLEST = ("rtn", "gptq", "mx, rtn", "selective_rtn", "8 bits static", AUTOROUND)
"""Ways of the smallest setting."""


@dataclass(frozen=True)
class Row:
    """What came of a way. bits: asked for. stored: bits a weight, scales and all. loss: nats a token. rounded: matrices that the
    time of a way left none for."""

    place: str
    way: str
    bits: float
    stored: float
    bytes: int
    loss: float
    seconds: float
    peak_memory: int
    rounded: int = 0

    @property
    def said(self) -> str:
        late = f", {self.rounded} matrices to the nearest" if self.rounded else ""
        return (
            f"{self.way:33} {self.bits:4.1f} bits, {self.stored:5.2f} stored {self.bytes:>12,} bytes  "
            f"{self.loss:8.4f}  {self.seconds:7.1f} s{late}"
        )


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
    name, width = way.activations
    rounding = Choice.of("quantise", name, kind="activations", **({"bits": width} if width else {})).build()
    return Recipe(form, **parts, limits=limits, activations=rounding)


def measured(place: str, name: str, bits: int, options: argparse.Namespace, text: QuantiseText) -> Row | str:
    """One way on one model, or why it is left out."""
    way = WAYS[name]
    if way.widths and bits not in way.widths:
        return "it is not for such bits"
    if name == AUTOROUND:
        return autorounded(place, bits, options, text)
    opened = opened_at(place, options.smallest)
    model = plain_module(opened)
    assert opened.tokenizer is not None
    began = time.perf_counter()
    try:
        done = quantise_layers(
            model,
            text.calibration,
            recipe(way, bits + way.more),
            over=lambda: time.perf_counter() - began > options.each,
            hurry=lambda: time.perf_counter() - began > 0.4 * options.each,
        )
    except ShoestringError as error:
        return str(error)
    took = time.perf_counter() - began
    size = sum(one.nbytes for one in done.matrices.values())
    weights = sum(one.rows * one.columns for one in done.matrices.values())
    round_inputs(model, done.matrices)
    loss = likelihood(model.eval(), opened.tokenizer, text.measured).nats_per_token.value
    stored, late = 8 * size / weights, len(done.rounded)
    return Row(place, name, bits + way.more, stored, size, loss, took, peak_memory(), late)


def autorounded(place: str, bits: int, options: argparse.Namespace, text: QuantiseText) -> Row | str:
    """The peer AutoRound, in groups of 64 with a zero point, in a process of its own; or why it is left out."""
    if options.autoround is None:
        return "--autoround names no Python that has the package auto-round"
    opened = opened_at(place, options.smallest)
    assert opened.tokenizer is not None
    matrices = list(plain_module(opened).anatomy().matrices())
    weights = sum(one.weight.numel() for one in matrices)
    rows = [row.tolist() for batch in text.calibration for row in batch.inputs.values]
    with tempfile.TemporaryDirectory() as scratch:
        folder, out, tokens = Path(scratch) / "in", Path(scratch) / "out", Path(scratch) / "tokens.json"
        export_transformers(opened, folder, torch.float32)
        tokens.write_text(json.dumps(rows))
        program = str(Path(__file__).with_name("quantise_autoround.py"))
        command = [
            options.autoround,
            program,
            str(folder),
            str(out),
            "--bits",
            str(bits),
            "--group",
            str(GROUP),
        ]
        command += ["--iters", "2" if options.smallest else "200", "--calibration", str(tokens)]
        bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10 * options.each, env=bare)
        except (subprocess.TimeoutExpired, OSError) as error:
            return " ".join(str(error).split())[-200:]
        if done.returncode:
            return " ".join(done.stderr.split())[-200:]
        took = float(re.findall(r"^seconds ([0-9.]+)$", done.stdout, re.MULTILINE)[0])
        made = open_model(str(out), torch.float32)
        loss = likelihood(made.model, opened.tokenizer, text.measured).nats_per_token.value
    stored = bits + (16 + bits) / GROUP  # a scale of 16 bits, and a zero point as wide as a code
    return Row(place, AUTOROUND, bits, stored, round(weights * stored / 8), loss, took, peak_memory())


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
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no way begins; default none")
    parser.add_argument("--each", type=float, default=600.0, help="seconds of a way's calibration, default 600")
    parser.add_argument("--autoround", metavar="PYTHON", help="of an environment with the package auto-round")
    parser.add_argument("--smallest", action="store_true", help="a hardly trained model and few tokens")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, environment and every figure there")
    options = parser.parse_args(words)
    if options.smallest:
        options.places, options.bits, options.calibration, options.measured = ["1.5m"], [4, 2], 512, 512
        options.ways = [name for name in options.ways if name in SMALLEST]
    return options


class Kept:
    """Rows, and what was left out, written as they come: another run with the same text takes them."""

    def __init__(self, options: argparse.Namespace) -> None:
        keys = ("calibration", "measured", "smallest", "each")
        self.path, self.settings = options.json, {key: getattr(options, key) for key in keys}
        self.rows, self.left_out = list[Row](), list[dict[str, Any]]()
        if self.path is not None and self.path.exists():
            found = json.loads(self.path.read_text())
            if found["settings"] != self.settings:
                raise SystemExit(f"{self.path} is of other settings, {found['settings']}: name another file")
            self.rows, self.left_out = [Row(**row) for row in found["rows"]], found["left_out"]

    def row(self, place: str, way: str, bits: float) -> Row | None:
        """One that is there."""
        return next((row for row in self.rows if (row.place, row.way, row.bits) == (place, way, bits)), None)

    def write(self) -> None:
        if self.path is not None:
            rows = [asdict(row) for row in self.rows]
            content = {"settings": self.settings, "environment": environment(probe()), "rows": rows}
            atomic.write_text(self.path, json.dumps({**content, "left_out": self.left_out}, indent=1) + "\n")


def main(words: Sequence[str] | None = None) -> int:
    options = read(words)
    kept, end = Kept(options), time.monotonic() + options.seconds
    for place in options.places:
        plain, text = plain_row(place, options)
        if kept.row(place, "plain", 32) is None:
            kept.rows.append(plain)
        print(
            f"{place}: {plain.loss:.4f} nats a token, {plain.bytes:,} bytes in the matrices of its layers", flush=True
        )
        for bits in options.bits:
            for name in options.ways:
                found: Row | str | None = kept.row(place, name, bits + WAYS[name].more)
                if found is None:
                    if time.monotonic() >= end:
                        print(f"the time is over before {name} at {bits} bits: the same command goes on there")
                        return 0
                    found = measured(place, name, bits, options, text)
                    if isinstance(found, Row):
                        kept.rows.append(found)
                    else:
                        told = {"place": place, "way": name, "bits": bits, "why": found}
                        kept.left_out = [one for one in kept.left_out if one | {"why": found} != told] + [told]
                    kept.write()
                if isinstance(found, Row):
                    print(f"  {found.said} ({found.loss - plain.loss:+.4f})", flush=True)
                else:
                    print(f"  {name} at {bits} bits: left out: {found}", flush=True)
    kept.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
