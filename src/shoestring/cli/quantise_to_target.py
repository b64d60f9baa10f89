"""`shoestring quantise PLACE --to 4bit`: any model in few bits, within a budget, kept as a folder or as GGUF, and measured."""

import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shoestring.base import Opened, open_model
from shoestring.base.gguf_file import read_header
from shoestring.base.gguf_model import open_gguf_model
from shoestring.base.likelihood import TextLikelihood
from shoestring.base.text import Text, read_text
from shoestring.budget.budget import Budget
from shoestring.budget.ledger import DATA, START, Ledger
from shoestring.budget.units import show, show_seconds
from shoestring.cli.json_output import print_json
from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.config import Choice, Tree, build, merge, overrides
from shoestring.contract.batch import Batch
from shoestring.data.config import DataConfig
from shoestring.errors import UsageError, did_you_mean
from shoestring.quantise.conduct import (
    QuantiseOutcome,
    Wanted,
    clear,
    keep,
    measure,
    measure_kept,
    plain_module,
    quantise_model,
)
from shoestring.quantise.target import FORMS, BitTarget
from shoestring.quantise.text import split_text
from shoestring.shrink.export import refuse_taken
from shoestring.shrink.gguf_quantised import GGUF_FORMATS, write_quantised_gguf
from shoestring.shrink.milliseconds import Products, seconds_of_kept

TEXT = ("corpus", "heldout", "text_field", "encoding", "invalid")
TOKENS = 8192
CHARACTERS = 8
"""Characters of text to have at hand for each token that is asked for."""

LEAST = 200_000
"""Characters, at least: several documents."""

PARTS = {"format": "integer_groups", "solver": "gptq", "transform": "none", "bits": "", "activations": "none"}


def run_to_target(found: Namespace, configuration: Sequence[str]) -> int:
    """The command, its words parsed. Raises: UsageError, ShoestringError."""
    gguf = next((name for name in GGUF_FORMATS if name.lower() == found.to.lower()), None)
    flags = overrides(configuration)
    asked = text_options(flags)
    wanted = settled(found, flags, gguf, None if gguf is not None else _target(found.to))
    screen, ledger = Screen(soft_wrap=True, stderr=found.json), Ledger()
    out = found.out or default_out(found.place, found.to, gguf is not None)
    refuse_taken(out)
    with ledger.clock(START):
        opened = open_model(found.place, torch.float32)
        model = plain_module(opened)
    if gguf is not None and opened.tokenizer is None:
        raise UsageError(f"{found.place} has no tokenizer, and a GGUF file holds one")
    for note in opened.about.notes:
        screen.print(f"note: {note}")
    calibration: tuple[Batch, ...] = ()
    measured: Text | None = None
    parts = (wanted.solver, wanted.transform, wanted.bits, wanted.activations)
    reads = any(getattr(part.build(), "reads", False) for part in parts)
    if reads or not found.unmeasured:
        with ledger.clock(DATA):
            calibration, measured = texts(opened, asked, found.tokens or TOKENS, found.measured or TOKENS, screen)
    seconds, fixed = None, 0.0
    if wanted.target is not None and wanted.target.unit == "seconds":
        products = Products(model, wanted.table_bits)
        seconds, fixed = products.seconds, products.fixed
        screen.print(f"measured    {1e3 * fixed:.2f} ms a token beside the matrices of the layers")
    work = out.parent / f".{out.name}.unfinished"
    made = quantise_model(
        opened,
        model,
        wanted,
        calibration if reads else (),
        None if found.unmeasured else measured,
        ledger,
        work,
        seconds=seconds,
        fixed_seconds=fixed,
    )
    after: TextLikelihood | None = None
    took: float | None = None
    if gguf is not None:
        made.bytes_after, said = write_quantised_gguf(out, opened, model, made, gguf)
        made.notes += said
        if measured is not None and not found.unmeasured:
            written = open_gguf_model(read_header(out), torch.float32)  # its numbers, by the tokenizer that it has here
            after = measure(written, opened, measured, ledger, "after")
    else:
        keep(opened, model, made, wanted, out, ledger)
        if measured is not None and not found.unmeasured:
            after, told = measure_kept(out, measured, ledger)
            made.notes += [line for line in told if line not in made.notes]
        if seconds is not None:
            (took,) = seconds_of_kept([str(out)])
    made.after = after
    clear(work)
    _tell(screen, made, measured, out, took)
    if gguf is None:
        screen.print(f"use it with  shoestring generate {out} 'some text'")
    if found.json:
        print_json(_told(made, wanted, out, took))
    return 0


def settled(found: Namespace, flags: Tree, gguf: str | None, target: BitTarget | None) -> Wanted:
    """What is asked for, from flags. Raises: UsageError."""
    parts: dict[str, Choice] = {}
    for kind, default in PARTS.items():
        options = dict(flags.get(kind, {}))
        name = getattr(found, kind)
        if kind == "format" and gguf is not None:
            if name is not None or options:
                raise UsageError(f"--to {gguf} is a format by itself: leave --format out")
            name, options = GGUF_FORMATS[gguf]
        if kind == "bits":
            alike = target is None or target.whole is not None
            name = name or ("uniform" if alike else "integer_program")
        parts[kind] = Choice.of("quantise", name or default, kind=kind, **options)
    seconds = None
    if found.budget is not None:
        limits = Budget.parse(found.budget).limits
        if set(limits) != {"seconds"}:
            raise UsageError(f"--budget {found.budget}: quantising has a budget of time, as 10m")
        seconds = limits["seconds"]
    kept = tuple(one.strip() for one in (found.keep or "").split(",") if one.strip())
    if gguf is not None and kept:
        raise UsageError("--keep is for folders: all matrices of a GGUF file have the type that is asked for")
    if gguf is not None and parts["activations"].name != "none":
        raise UsageError("a GGUF file does not say how activations are rounded: leave --activations out")
    bits = found.embedding or (16 if gguf is not None else 8)
    if gguf is not None and bits == 4:
        raise UsageError("a GGUF file has its embedding in 16 or 8 bits here, not 4")
    return Wanted(target, **parts, table_bits=bits, keep=kept, seconds=seconds)


def _target(text: str) -> BitTarget:
    try:
        return BitTarget.parse(text)
    except UsageError:
        known = ("integers", "ternary2", "ternary1.6", *GGUF_FORMATS)
        raise UsageError(f"--to {text} is no target: say {FORMS}, or a format ({did_you_mean(text, known)})") from None


def text_options(flags: Tree) -> Tree:
    """The [data] section of the flags. Raises: UsageError for any other section that is not of a part."""
    for section in flags:
        if section != "data" and section not in PARTS:
            raise UsageError(f"--{section} is unknown: {did_you_mean(section, ('data', *PARTS))}")
    asked: Tree = flags.get("data", {})
    for key in asked:
        if key not in TEXT:
            raise UsageError(f"--data.{key} has no meaning here: {did_you_mean(key, TEXT)}")
    return asked


def texts(opened: Opened, asked: Tree, tokens: int, measured: int, screen: Screen) -> tuple[tuple[Batch, ...], Text]:
    """(windows to calibrate on, text to measure on): of the held-out part of a corpus, different documents."""
    if opened.tokenizer is None:
        raise UsageError(f"{opened.about.place} has no tokenizer: text cannot be made its tokens")
    own = opened.about.values.get("data", {})
    if own.get("source") and "corpus" not in asked:
        raise UsageError("the model was trained on several sources: say which text is meant with --data.corpus")
    config = build(DataConfig, merge({key: own[key] for key in TEXT if key in own}, asked), lambda key: f"--data.{key}")
    with shown_on(screen, before=""):
        text = read_text(config, max(CHARACTERS * (tokens + measured), LEAST))
    split = split_text(text, opened.tokenizer, opened.model.about.context, tokens, measured)
    count = sum(batch.targets.numel() for batch in split.calibration)
    screen.print(f"calibrated   on {count:,} tokens of the held-out part of {text.corpus}")
    screen.print(f"measured on  {split.measured.said}, none of them among those")
    return split.calibration, split.measured


def default_out(place: str, to: str, gguf: bool) -> Path:
    stem = re.sub(r"[^\w.-]+", "-", Path(place).name or place).strip("-.") or "model"
    plain = re.sub(r"[^\w.-]+", "-", to)
    return Path(f"{stem}-{plain}.gguf" if gguf else f"{stem}-{plain}")


def _tell(screen: Screen, made: QuantiseOutcome, measured: Text | None, out: Path, took: float | None) -> None:
    each = f"{made.code_bits:.2f} bits a weight, {made.stored_bits:.2f} with scales"
    screen.print(f"matrices     {len(made.done.matrices)} of the layers, {each}")
    if made.done.kept:
        screen.print(f"             {len(made.done.kept)} kept as they are")
    before, after = show("bytes", made.bytes_before), show("bytes", made.bytes_after)
    screen.print(f"size         {before} -> {after}, {made.bytes_before / made.bytes_after:.1f} times smaller")
    if made.before and made.after:
        old, new = made.before.nats_per_token.value, made.after.nats_per_token.value
        screen.print(f"loss         {old:.4f} -> {new:.4f} nats a token ({new - old:+.4f})")
    if took is not None:
        screen.print(f"a token      {1e3 * took:.2f} ms")
    screen.print(f"took         {show_seconds(made.seconds)}, without measuring")
    for note in made.notes:
        screen.print(f"note: {note}")
    screen.print(f"written to   {out}")


def _told(made: QuantiseOutcome, wanted: Wanted, out: Path, took: float | None) -> dict[str, Any]:
    """What `--json` prints; losses are in nats a token, and None where they were not measured."""
    return {
        "path": out,
        "recipe": wanted.told(),
        "weights": made.weights,
        "matrices": len(made.done.matrices),
        "code_bits": made.code_bits,
        "stored_bits": made.stored_bits,
        "bytes_before": made.bytes_before,
        "bytes": made.bytes_after,
        "loss_before": made.before and made.before.nats_per_token,
        "loss_after": made.after and made.after.nats_per_token,
        "seconds": made.seconds,
        "seconds_per_token": took,
        "rounded": made.done.rounded,
        "notes": made.notes,
        "accounts": {"calibration": made.done.spent.as_dict()},
    }
