"""`shoestring shrink`: a smaller model of one that exists, pruned to a target and healed within a budget."""

import copy
import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from shoestring.base import Opened, open_model
from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import cache_folder
from shoestring.budget.units import show_seconds
from shoestring.cli.arguments import Arguments
from shoestring.cli.configuration_help import KEYS
from shoestring.cli.json_output import add_json_flag, print_json
from shoestring.cli.run_view import RunView
from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.config import Tree, merge, overrides
from shoestring.contract.edit import Decision
from shoestring.data.prepare import prepare
from shoestring.errors import UsageError, did_you_mean
from shoestring.launch.launch import Launch
from shoestring.launch.request import TrainingRequest
from shoestring.lowbit.packing import LAYOUTS
from shoestring.method import Card, find, methods
from shoestring.model.transformer import Transformer
from shoestring.report.page import write_report
from shoestring.shrink.gguf_file import KINDS as TERNARY_KINDS
from shoestring.shrink.heldout import HeldoutText
from shoestring.shrink.shares import KINDS, share_for
from shoestring.shrink.target import Size, Target, size_of
from shoestring.surgery.pruning import Pruning
from shoestring.train.evaluate import Heldout
from shoestring.train.session import Outcome
from shoestring.train.trained import load_trained

PURPOSES = """\
  --to 0.7x           0.7 times the parameters
  --to 90MiB          of weights in bfloat16
  --to 80Mparameters
  --to 200Mflops/token
  --to 4ms/token      measured on this machine, at one row

The method decides what goes by looking at some of the text; the rest of the budget heals: the pruned model is trained on the
text, and learns from the model that it is made of (--objective next_token: from the text alone).

"""


@dataclass(frozen=True)
class Stage:
    """A model on the way: its size, and its held-out loss where that was measured."""

    name: str
    size: Size
    heldout: Heldout | None


def run(words: Sequence[str]) -> int:
    parser = Arguments("shrink", "Make a smaller model of one that exists, within a budget.", PURPOSES + KEYS)
    parser.add_argument(
        "place", metavar="PLACE", help="a folder of a run or of transformers, a GGUF file, hf:NAME@REVISION, or smollm2"
    )
    parser.add_argument("--to", required=True, metavar="TARGET", help="what it is to come down to: see below")
    parser.add_argument("--method", default="minitron", metavar="NAME", help="of pruning (default minitron)")
    parser.add_argument(
        "--axes",
        metavar="NAMES",
        help="what may be cut: hidden, heads, width, with commas (default: hidden and width, or heads)",
    )
    parser.add_argument("--out", type=Path, help="the folder of the result (default: runs/DATE-TIME)")
    parser.add_argument("--unmeasured", action="store_true", help="do not measure held-out losses before healing")
    add_json_flag(parser, "sizes, losses, seconds and where the model is")
    found, rest = parser.read_with_configuration(words)
    if found.to.lower() in {name.lower() for name in (*LAYOUTS, *TERNARY_KINDS)}:
        raise UsageError(
            f"shrink makes models smaller by pruning; to round weights: shoestring quantise {found.place} --to {found.to}"
        )
    target, card = Target.parse(found.to), _method(found.method)
    axes = _axes(card, found.axes)
    out = found.out or Path("runs") / datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    screen = Screen(soft_wrap=True, stderr=found.json)
    opened = open_model(found.place, torch.float32)
    model = _native(opened, found.place)
    whole = size_of(model, timed=True)
    multiple = int(card.options().model_fields["multiple"].default)
    share, planned = share_for(
        model, target, axes, multiple, whole=whole, measure=lambda cut: size_of(cut, timed=target.unit == "seconds")
    )
    screen.print(f"now        {whole}")
    screen.print(f"decided    {card.name}: {share:.0%} of {' and '.join(axes)} stay, for {planned}")
    edit: dict[str, Any] = {"name": card.name, **dict.fromkeys(axes, share)}
    asked: Tree = {"model": {"base": found.place}, "edits": [edit], "objective": "distillation"}
    with shown_on(screen), Launch(RunView(screen)) as launch:
        ended = launch.begin(TrainingRequest.of(merge(asked, overrides(rest))), out)
    if ended.outcome.signal is not None:
        screen.print(f"stopped; go on with: shoestring train --resume {ended.folder.path}")
        return 128 + ended.outcome.signal
    stages = _stages(opened, model, whole, ended.folder.path, measured=not found.unmeasured)
    _tell(screen, stages, ended.outcome)
    screen.print(f"report: {write_report([ended.folder.path])}")
    if found.json:
        print_json(_measured(stages, ended.outcome, card, axes, share, ended.folder.path))
    screen.print(f"use it with  shoestring generate {out} 'some text'")
    return 0


def _method(name: str) -> Card:
    """The card of a way of pruning. Raises: UsageError for any other edit."""
    known = [card.name for card in methods("surgery", "edit") if _prunes(card)]
    if name not in known:
        raise UsageError(f"--method {name} is no way of pruning: {did_you_mean(name, known)}")
    return find("surgery", name, "edit")


def _prunes(card: Card) -> bool:
    return isinstance(card.target, type) and issubclass(card.target, Pruning)


def _axes(card: Card, given: str | None) -> list[str]:
    """The options of the method that say how much stays. Raises: UsageError for one that it does not have."""
    able = [name for name in KINDS if name in card.options().model_fields]
    if given is None:
        return ["hidden", "width"] if "width" in able else able
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name not in able:
            raise UsageError(f"--axes {given}: {card.name} cuts {', '.join(able)}, not '{name}'")
    return list(dict.fromkeys(names))


def _native(opened: Opened, place: str) -> Transformer:
    if type(opened.model) is not Transformer:
        raise UsageError(
            f"{place} is {opened.about.kind}: what can be cut is known of native models, and of families with a bridge"
        )
    return opened.model


def _stages(opened: Opened, model: Transformer, whole: Size, path: Path, *, measured: bool) -> list[Stage]:
    """The model as it was, as it was cut, and as it is now."""
    trained = load_trained(path)
    small = trained.native
    text: HeldoutText | None = None
    if measured:
        dataset = prepare(trained.config.data, cache_folder())
        text = HeldoutText(trained.config, dataset, trained.tokenizer)
    ledger = Ledger()
    before = text(model, ledger, "before") if text else None
    pruned = copy.deepcopy(model)
    for one in trained.applied:
        made = one.edit.apply(pruned, Decision(one.decision.values, one.decision.tensors))
        assert isinstance(made, Transformer)
        pruned = made
    after = text(pruned, ledger, "after") if text else None
    now = size_of(small, timed=True)
    healed = text(small, ledger, "healed") if text else None
    return [Stage("before", whole, before), Stage("pruned", now, after), Stage("healed", now, healed)]


def _tell(screen: Screen, stages: Sequence[Stage], outcome: Outcome) -> None:
    for stage in stages:
        loss = "" if stage.heldout is None else f", held-out {stage.heldout.loss:.4f}"
        screen.print(f"{stage.name:10} {stage.size}{loss}")
    before, after = stages[0].size, stages[-1].size
    faster = f"{before.of('seconds') / after.of('seconds'):.2f} times as fast a token"
    screen.print(
        f"{after.parameters / before.parameters:.2f} times the parameters, {faster}, "
        f"for {show_seconds(outcome.summary['seconds'])} of pruning and healing"
    )
    if after.of("seconds") > 0.98 * before.of("seconds"):
        screen.print("note: a token takes as long as before: what was cut frees bytes, and no time on this machine")


def _measured(
    stages: Sequence[Stage], outcome: Outcome, card: Card, axes: Sequence[str], share: float, path: Path
) -> dict[str, Any]:
    """What --json prints; losses in nats a token."""
    made = {
        stage.name: {
            **asdict(stage.size),
            "bytes": stage.size.bytes,
            "heldout_loss": stage.heldout and stage.heldout.loss,
            "bits_per_byte": stage.heldout and stage.heldout.bits_per_byte,
        }
        for stage in stages
    }
    spent = {
        "seconds": outcome.summary["seconds"],
        "flops": outcome.summary["flops"],
        "accounts": outcome.summary["accounts"],
    }
    return {"path": path, "method": card.name, "axes": list(axes), "share": share, "stages": made, "spent": spent}
