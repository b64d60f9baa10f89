"""`shoestring quantise`: a trained run packed for the kernels here, or written as GGUF for llama.cpp."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import cache_folder
from shoestring.budget.units import show
from shoestring.cli.arguments import Arguments
from shoestring.cli.json_output import add_json_flag, print_json
from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.contract.edit import Switched
from shoestring.data.prepare import prepare
from shoestring.errors import UsageError, did_you_mean
from shoestring.lowbit.packing import LAYOUTS
from shoestring.shrink.conduct import Shrunk, shrink_to_gguf, shrink_to_packed
from shoestring.shrink.gguf_file import KINDS
from shoestring.shrink.heldout import HeldoutText
from shoestring.train.trained import Trained, load_trained

PURPOSES = """\
  ternary2     2 bits a weight, packed for the kernels here: a folder that `shoestring generate` reads
  ternary1.6   1.6 bits a weight, likewise
  TQ2_0        2.06 bits a weight, for llama.cpp: a GGUF file (needs the package 'gguf'). Its blocks have 256 columns:
               plan the model with --model.width and --model.hidden in multiples of 256
  TQ1_0        1.69 bits a weight, likewise
"""


def run(words: Sequence[str]) -> int:
    parser = Arguments(
        "quantise",
        "Pack the matrices of a trained run as -1, 0 and 1. A run trained with --edits ternary keeps the weights it was\n"
        "trained for; of any other the weights are rounded now, which costs quality.",
        PURPOSES,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="ternary2, ternary1.6, TQ2_0 or TQ1_0: see below")
    parser.add_argument(
        "--embedding",
        type=int,
        choices=(4, 8, 16),
        help="bits of the embedding and the output head (default 8; for GGUF 16, or 8)",
    )
    parser.add_argument("--out", type=Path, help="the folder or file to write (default: RUN/FORMAT, RUN/FORMAT.gguf)")
    parser.add_argument(
        "--unmeasured", action="store_true", help="measure no held-out losses: the corpus is not needed then"
    )
    add_json_flag(parser, "sizes, held-out losses and where the model is")
    found = parser.read(words)
    known = {name.lower(): name for name in (*LAYOUTS, *KINDS)}
    if found.to.lower() not in known:
        raise UsageError(f"--to {found.to}: {did_you_mean(found.to, known.values())}")
    target = known[found.to.lower()]
    console = Screen(soft_wrap=True, stderr=found.json)
    ledger = Ledger()
    trained = load_trained(found.run)
    with shown_on(console, before=""), ledger.clock("data"):
        text = None if found.unmeasured else _text(trained)
    if target in LAYOUTS:
        out = found.out or found.run / target
        outcome = shrink_to_packed(trained, target, found.embedding or 8, out, text, ledger)
    else:
        out = found.out or found.run / f"{target}.gguf"
        kind = next(kind for kind in KINDS if kind == target)
        with shown_on(console, before=""):
            outcome = shrink_to_gguf(trained, kind, found.embedding or 16, out, text, ledger)
    _tell(console, trained, outcome)
    console.print(f"written to   {out}")
    if found.json:
        print_json(_measured(trained, outcome, target, out, ledger))
    if target in LAYOUTS:
        console.print(f"use it with  shoestring generate {out} 'some text'")
    return 0


def _text(trained: Trained) -> HeldoutText:
    """The run's held-out text. Raises: UsageError where it cannot be had."""
    try:
        dataset = prepare(trained.config.data, cache_folder())
        return HeldoutText(trained.config, dataset, trained.tokenizer)
    except UsageError as error:
        raise UsageError(
            f"{error}; --unmeasured does without the held-out text, and data.corpus in the run's config.toml may be changed "
            "where the text was moved"
        ) from None


def _measured(trained: Trained, outcome: Shrunk, target: str, out: Path, ledger: Ledger) -> dict[str, Any]:
    """What `--json` prints; losses are in nats a token, and None where they were not measured."""
    chosen = outcome.chosen
    return {
        "path": out,
        "format": target,
        "weights": sum(parameter.numel() for parameter in trained.model.parameters()),
        "bytes": outcome.bytes,
        "parts": outcome.parts,
        "matrices": {"trained": len(chosen.trained), "rounded": len(chosen.rounded), "kept": len(chosen.kept)},
        "heldout_before": outcome.before,
        "heldout_after": outcome.after,
        "seconds": ledger.totals.wall_clock,
        "flops": ledger.totals.flops,
    }


def _tell(console: Screen, trained: Trained, outcome: Shrunk) -> None:
    chosen = outcome.chosen
    if chosen.trained:
        console.print(f"matrices     {len(chosen.trained)}, the ternary ones that the run was trained with, exactly")
    else:
        how = f"for '{', '.join(one.name for one in trained.applied)}'" if trained.quantised else "in floating point"
        if any(isinstance(one.edit, Switched) for one in trained.applied) and not trained.quantised:
            how += f" until step {trained.step}, as quantising begins later in this run,"
        console.print(
            f"matrices     {len(chosen.rounded)}, trained {how} and rounded to ternary now: this costs quality, "
            "see the held-out loss; train with --edits ternary to keep it"
        )
    if chosen.kept:
        console.print(f"             {len(chosen.kept)} kept in higher precision, as the run had them")
    if outcome.written:
        ternary, wide = len(outcome.written.ternary), len(outcome.written.wide)
        console.print(
            f"in the file  {ternary} ternary matrices and {wide} in F16: GGUF has queries, keys and values apart, gate and up too"
        )
    weights = sum(parameter.numel() for parameter in trained.model.parameters())
    before = 4 * weights
    console.print(
        f"size         {show('bytes', before)} in float32 -> {show('bytes', outcome.bytes)}, "
        f"{before / outcome.bytes:.1f} times smaller, {outcome.bytes / weights:.3f} bytes a weight"
    )
    for part in outcome.parts:
        each = f", {part.each:.3f} a weight" if part.weights else ""
        scales = f" ({part.scales:,} of them scales)" if part.scales else ""
        console.print(f"  {part.name:28} {part.weights:>13,} weights {part.bytes:>13,} bytes{each}{scales}")
    if outcome.written and outcome.written.rounding:
        console.print(
            f"scales       in float16, which moves them by up to {outcome.written.rounding:.1e} of their size"
        )
    if outcome.before and outcome.after:
        more = f"{outcome.after.loss - outcome.before.loss:+.4f} nats a token"
        how = f"after ({more})"
        if not outcome.parts:
            how = f"after rounding, computed here in float32 ({more}; llama.cpp rounds activations besides)"
        console.print(
            f"held-out     {outcome.before.loss:.4f} before, {outcome.after.loss:.4f} {how}, "
            f"{outcome.before.bits_per_byte:.4f} and {outcome.after.bits_per_byte:.4f} bits a byte"
        )
