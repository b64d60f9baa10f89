"""`shoestring quantise PLACE --to loss+0.01`: the smallest model whose held-out loss rises by no more than that."""

import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace

import torch

from shoestring.base import open_model
from shoestring.budget.ledger import DATA, START, Ledger
from shoestring.budget.units import show, show_seconds
from shoestring.cli.json_output import print_json
from shoestring.cli.quantise_to_target import TOKENS, default_out, settled, text_options, texts
from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.config import Choice, overrides
from shoestring.errors import UsageError
from shoestring.quantise.conduct import clear, plain_module
from shoestring.quantise.loss_target import recipes
from shoestring.quantise.loss_trials import LossTrials
from shoestring.shrink.export import refuse_taken

SEARCH = "cheapest_first"


def run_to_loss(found: Namespace, limit: float, configuration: Sequence[str]) -> int:
    """The command, its words parsed. limit: nats a token. Raises: UsageError, ShoestringError."""
    if found.bits is not None:
        raise UsageError("--bits: a target of loss is searched for with all matrices alike: leave it out")
    if found.unmeasured:
        raise UsageError("--unmeasured: a target of loss is measured: leave it out")
    flags = overrides(configuration)
    asked = text_options(flags)
    wanted = settled(found, flags, None, None)
    solver = wanted.solver if found.solver is not None or "solver" in flags else None
    screen, ledger = Screen(soft_wrap=True, stderr=found.json), Ledger()
    out = found.out or default_out(found.place, found.to, False)
    refuse_taken(out)
    with ledger.clock(START):
        opened = open_model(found.place, torch.float32)
        model = plain_module(opened)
    for note in opened.about.notes:
        screen.print(f"note: {note}")
    sizes = recipes(wanted.format.name, dict(flags.get("format", {})), solver, list(model.anatomy().matrices()))
    with ledger.clock(DATA):
        calibration, measured = texts(opened, asked, found.tokens or TOKENS, found.measured or TOKENS, screen)
    work = out.parent / f".{out.name}.unfinished"
    with shown_on(screen, before=""):
        trials = LossTrials(
            opened, model, replace(wanted, target=None), sizes, limit, calibration, measured, ledger, work
        )
        chosen = Choice.of("quantise", SEARCH, kind="recipe search").build().choose(trials)
    os.replace(trials.folder(chosen), out)
    clear(work)
    told = next(one for one in reversed(trials.tried) if one["recipe"] == chosen.said)
    before, rise, size = trials.before.nats_per_token.value, told["rise"], told["bytes"]
    whole = sum(one.nbytes for one in {id(one): one for one in model.parameters()}.values())
    screen.print(f"chosen       {chosen.said}, of {len(trials.tried)} recipes that were tried")
    if trials.over():
        screen.print("note: the budget ended: a smaller one may do too")
    screen.print(f"size         {show('bytes', whole)} -> {show('bytes', size)}, {whole / size:.1f} times smaller")
    screen.print(
        f"loss         {before:.4f} -> {before + rise:.4f} nats a token ({rise:+.4f}), on the text it was chosen by"
    )
    took = sum(one["seconds"] for one in trials.tried)
    screen.print(f"took         {show_seconds(took)}, without measuring")
    screen.print(f"written to   {out}")
    screen.print(f"use it with  shoestring generate {out} 'some text'")
    if found.json:
        print_json(
            {
                "path": out,
                "recipe": chosen.said,
                "limit": limit,
                "rise": rise,
                "loss_before": trials.before.nats_per_token,
                "bytes_before": whole,
                "bytes": size,
                "seconds": took,
                "tried": trials.tried,
            }
        )
    return 0
