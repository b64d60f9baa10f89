"""`shoestring quantise PLACE --to integers`: a model that computes with integers alone, and the memory that it takes."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shoestring.base import open_model
from shoestring.budget.ledger import DATA, START, Ledger
from shoestring.budget.units import show, show_seconds
from shoestring.cli.json_output import print_json
from shoestring.cli.quantise_to_target import TOKENS, default_out, text_options, texts
from shoestring.cli.screen import Screen
from shoestring.config import overrides
from shoestring.errors import UsageError
from shoestring.quantise.conduct import plain_module
from shoestring.quantise.conduct_integers import IntegerOnlyOutcome, quantise_to_integers
from shoestring.quantise.integer_only.convert import require_convertible
from shoestring.shrink.export import refuse_taken

INTEGERS = "integers"

FIXED = ("budget", "format", "solver", "transform", "bits", "activations", "keep", "embedding")
"""Flags of other targets: here all is in 8 bits, rounded to the nearest, with static ranges."""


def run_to_integers(found: Namespace, configuration: Sequence[str]) -> int:
    """The command, its words parsed. Raises: UsageError, ShoestringError."""
    for flag in FIXED:
        if getattr(found, flag) is not None:
            raise UsageError(
                f"--{flag} is for other targets: --to {INTEGERS} has int8 with a scale a row and static ranges"
            )
    flags = overrides(configuration)
    for section in flags:
        if section != "data":
            raise UsageError(f"--{section} is for other targets: --to {INTEGERS} heeds --data alone")
    asked = text_options(flags)
    screen, ledger = Screen(soft_wrap=True, stderr=found.json), Ledger()
    out = found.out or default_out(found.place, found.to, False)
    refuse_taken(out)
    with ledger.clock(START):
        opened = open_model(found.place, torch.float32)
        model = plain_module(opened)
    require_convertible(model)  # said before text is read
    with ledger.clock(DATA):
        calibration, measured = texts(opened, asked, found.tokens or TOKENS, found.measured or TOKENS, screen)
    made = quantise_to_integers(opened, model, calibration, None if found.unmeasured else measured, out, ledger)
    _tell(screen, made, out)
    if found.json:
        print_json(_told(made, out))
    return 0


def _tell(screen: Screen, made: IntegerOnlyOutcome, out: Path) -> None:
    used = made.used
    screen.print(f"weights      {used.weights:,} bytes, with multipliers and tables")
    screen.print(f"cache        {used.cache:,} bytes, of one text as long as the context")
    screen.print(f"activations  {used.activations:,} bytes at most, beside these, as its last token is read")
    screen.print(f"in use       {used.total:,} bytes ({show('bytes', used.total)})")
    screen.print(f"size         {show('bytes', made.bytes_before)} -> {show('bytes', made.bytes_after)} of file")
    if made.before and made.after:
        old, new = made.before.nats_per_token.value, made.after.nats_per_token.value
        screen.print(f"loss         {old:.4f} -> {new:.4f} nats a token ({new - old:+.4f})")
    screen.print(f"took         {show_seconds(made.seconds)}, without measuring")
    screen.print(f"written to   {out}")
    screen.print(f"use it with  shoestring generate {out} 'some text'")


def _told(made: IntegerOnlyOutcome, out: Path) -> dict[str, Any]:
    """What `--json` prints; losses are in nats a token, and None where they were not measured."""
    used = made.used
    return {
        "path": out,
        "footprint": {
            "weights": used.weights,
            "cache": used.cache,
            "activations": used.activations,
            "total": used.total,
        },
        "bytes_before": made.bytes_before,
        "bytes": made.bytes_after,
        "loss_before": made.before and made.before.nats_per_token,
        "loss_after": made.after and made.after.nats_per_token,
        "seconds": made.seconds,
    }
