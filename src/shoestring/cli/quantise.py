"""`shoestring quantise`: any model in few bits, as a folder or as GGUF; and the ternary weights of a run, packed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import cache_folder
from shoestring.budget.units import show
from shoestring.cli.arguments import Arguments, whole
from shoestring.cli.json_output import add_json_flag, print_json
from shoestring.cli.quantise_to_integers import INTEGERS, run_to_integers
from shoestring.cli.quantise_to_loss import run_to_loss
from shoestring.cli.quantise_to_target import run_to_target
from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.contract.edit import Switched
from shoestring.data.prepare import prepare
from shoestring.errors import UsageError
from shoestring.lowbit.packing import LAYOUTS
from shoestring.quantise.loss_target import loss_target
from shoestring.shrink.conduct import Shrunk, shrink_to_gguf, shrink_to_packed
from shoestring.shrink.gguf_file import KINDS
from shoestring.shrink.heldout import HeldoutText
from shoestring.train.trained import Trained, load_trained

PURPOSES = """\
  4bit, 3bit ...  codes of so many bits in the matrices of the layers: a folder that every command reads
  3.5bit          on average: matrices get widths by what they lose (--bits)
  80MiB           of the file, at most
  loss+0.01       the smallest whose held-out loss rises by so many nats a token, at most: bits, groups and solvers are tried
  3ms/token       measured on this machine, at one row
  integers        weights, activations and cache as integers, and no floating point between token ids and logits: runs alone
  Q8_0, Q4_0, Q4_K, TQ2_0, TQ1_0
                  a GGUF file for llama.cpp (needs the package 'gguf'; families llama, mistral, qwen2, qwen3)
  ternary2, ternary1.6
                  2 or 1.6 bits a weight, of a run: a run trained with --edits ternary keeps the weights it was trained for, as
                  it does in TQ2_0 and TQ1_0 (plan such with --model.width and --model.hidden in multiples of 256)

How: --format, --solver, --transform, --bits and --activations name methods (`shoestring methods quantise` lists them); their
options are --format.group 128, --solver.damping 0.02 and so on. Layer after layer is rounded, each by what it reads once those
before it are.
When the budget ends, the rest is rounded to the nearest, and said. A killed command goes on where it was.

The text to calibrate and to measure on is the held-out part of --data.corpus, different documents for the two. Where nothing is
said it is what a run was trained with, else Python's standard library.
"""


def run(words: Sequence[str]) -> int:
    parser = Arguments("quantise", "Round a trained model to few bits, within a budget.", PURPOSES)
    parser.add_argument(
        "place", metavar="PLACE", help="a folder of a run or of transformers, a GGUF file, hf:NAME@REVISION, or smollm2"
    )
    parser.add_argument("--to", required=True, metavar="TARGET", help="what it is to come down to: see below")
    parser.add_argument("--budget", metavar="TIME", help="for quantising, as 10m (default: no limit)")
    parser.add_argument("--format", metavar="NAME", help="of numbers (default integer_groups)")
    parser.add_argument("--solver", metavar="NAME", help="decides each code (default gptq)")
    parser.add_argument("--transform", metavar="NAME", help="of the weights before (default none)")
    parser.add_argument(
        "--bits", metavar="NAME", help="which matrix gets how many (default: all alike, or integer_program)"
    )
    parser.add_argument(
        "--activations", metavar="NAME", help="how what matrices read is rounded: token, static (default none)"
    )
    parser.add_argument("--keep", metavar="PATTERNS", help="names of matrices that stay as they are, with commas")
    parser.add_argument(
        "--embedding",
        type=int,
        choices=(4, 8, 16),
        help="bits of the embedding and the output head (default 8; for GGUF 16, or 8)",
    )
    parser.add_argument("--tokens", type=whole(64, 1 << 24), metavar="N", help="to calibrate on (default 8192)")
    parser.add_argument("--measured", type=whole(64, 1 << 30), metavar="N", help="tokens to measure on (default 8192)")
    parser.add_argument("--out", type=Path, help="the folder or file to write (default: by the place and the target)")
    parser.add_argument("--unmeasured", action="store_true", help="measure no losses before and after")
    add_json_flag(parser, "sizes, losses, seconds and where the model is")
    found, configuration = parser.read_with_configuration(words)
    if found.to.lower() == INTEGERS:
        return run_to_integers(found, configuration)
    known = {name.lower(): name for name in (*LAYOUTS, *KINDS)}
    legacy = found.to.lower() in known and (found.to.lower() in {name.lower() for name in LAYOUTS} or _is_run(found))
    if not legacy:
        limit = loss_target(found.to)
        return run_to_target(found, configuration) if limit is None else run_to_loss(found, limit, configuration)
    for flag in ("budget", "format", "solver", "transform", "bits", "activations", "keep", "tokens", "measured"):
        if getattr(found, flag) is not None:
            raise UsageError(f"--{flag} is for other targets: a run's own ternary weights are packed as they are")
    if configuration:
        raise UsageError(f"unknown argument '{configuration[0]}'")
    return _run_ternary(found, known[found.to.lower()])


def _is_run(found: Any) -> bool:
    """Whether a run is to be written in ternary blocks as it was trained, and no method is named."""
    named = found.format or found.solver or found.transform or found.bits
    return not named and (Path(found.place) / "config.toml").is_file()


def _run_ternary(found: Any, target: str) -> int:
    """Pack a run's matrices as -1, 0 and 1."""
    run, console = Path(found.place), Screen(soft_wrap=True, stderr=found.json)
    ledger = Ledger()
    trained = load_trained(run)
    with shown_on(console, before=""), ledger.clock("data"):
        text = None if found.unmeasured else _text(trained)
    if target in LAYOUTS:
        out = found.out or run / target
        outcome = shrink_to_packed(trained, target, found.embedding or 8, out, text, ledger)
    else:
        out = found.out or run / f"{target}.gguf"
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
