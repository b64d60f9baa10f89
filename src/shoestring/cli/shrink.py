"""`shoestring shrink`: a smaller model of one that exists, pruned to a target and healed within a budget."""

import copy
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from shoestring.base import Opened, open_model
from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import cache_folder
from shoestring.cli.arguments import Arguments
from shoestring.cli.configuration_help import KEYS
from shoestring.cli.json_output import add_json_flag, print_json
from shoestring.cli.live import LiveView
from shoestring.cli.run_view import RunView
from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.config import Tree, merge, overrides
from shoestring.config import tree as plain
from shoestring.contract.edit import Decision
from shoestring.data.prepare import prepare
from shoestring.errors import UsageError, did_you_mean
from shoestring.launch.launch import Launch
from shoestring.launch.request import TrainingRequest
from shoestring.lowbit.packing import LAYOUTS
from shoestring.method import Card, find, methods
from shoestring.model.transformer import Transformer
from shoestring.plan.memory import known, learned_runs
from shoestring.plan.runs_table import text_key
from shoestring.report.page import write_report
from shoestring.shrink.gguf_file import KINDS as TERNARY_KINDS
from shoestring.shrink.healing import Healed, foretold, healed
from shoestring.shrink.heldout import HeldoutText
from shoestring.shrink.milliseconds import seconds_of_kept
from shoestring.shrink.shares import KINDS, layers_for, share_for
from shoestring.shrink.target import Size, Target, ratio_in_turns, size_of, times_in_turns
from shoestring.shrink.worth import Scratch, from_scratch, operations, price
from shoestring.surgery.edits.drop_layers import DropLayers
from shoestring.surgery.masking import Masking, zeros
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
  --to 0.7xms/token   0.7 times the time of a token
  --to 0.5x           with a method that masks (cast, sparse_schedule): half of the weights stay; a mask frees no bytes

The method decides what goes by looking at some of the text; the rest of the budget heals: the pruned model is trained on the
text, and learns from the model that it is made of (--objective next_token: from the text alone).

"""


@dataclass(frozen=True)
class Stage:
    """A model on the way: its size, and its held-out loss where that was measured."""

    name: str
    size: Size
    heldout: Heldout | None


@dataclass(frozen=True)
class ShrinkRequest:
    """What is to be done. edit: as a run has it. said: in words. axes: that are cut. share: of them that stays."""

    card: Card
    edit: dict[str, Any]
    said: str
    axes: tuple[str, ...]
    share: float


class HealingLive(LiveView):
    """Shows a healing run, and what its end is predicted to be as soon as a small part of it is done."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.lines, self.said = list[Mapping[str, Any]](), False

    def show(self, line: Mapping[str, Any]) -> None:
        """As `LiveView.show`."""
        super().show(line)
        if self.said or line["kind"] != "train":
            return
        self.lines.append(line)
        if foretold(self.lines):
            self.console.print(f"  healing: {healed(self.lines)}", highlight=False, markup=False, soft_wrap=True)
            self.said = True


def run(words: Sequence[str]) -> int:
    parser = Arguments("shrink", "Make a smaller model of one that exists, within a budget.", PURPOSES + KEYS)
    parser.add_argument(
        "place", metavar="PLACE", help="a folder of a run or of transformers, a GGUF file, hf:NAME@REVISION, or smollm2"
    )
    parser.add_argument("--to", required=True, metavar="TARGET", help="what it is to come down to: see below")
    parser.add_argument("--method", default="slimgpt", metavar="NAME", help="of pruning (default slimgpt)")
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
    asked = _asked(model, whole, target, card, axes)
    screen.print(f"now        {whole}")
    screen.print(f"decided    {asked.said}")
    tree: Tree = {"model": {"base": found.place}, "edits": [asked.edit], "objective": "distillation"}
    with shown_on(screen), Launch(RunView(screen, HealingLive)) as launch:
        ended = launch.begin(TrainingRequest.of(merge(tree, overrides(rest))), out)
    if ended.outcome.signal is not None:
        screen.print(f"stopped; go on with: shoestring train --resume {ended.folder.path}")
        return 128 + ended.outcome.signal
    stages, small, config = _stages(opened, model, whole, ended.folder.path, measured=not found.unmeasured)
    curve = healed(ended.folder.read_metrics())
    _tell(screen, stages, ended.outcome, zeros([small]))
    screen.print(f"healing: {curve}")
    scratch = from_scratch(small, operations(ended.outcome.summary), known(learned_runs(), text_key(config)))
    screen.print(_answer(stages, ended.outcome, scratch))
    screen.print(f"report: {write_report([ended.folder.path])}")
    if found.json:
        print_json(_measured(stages, ended.outcome, asked, curve, scratch, zeros([small]), ended.folder.path))
    screen.print(f"use it with  shoestring generate {out} 'some text'")
    return 0


def _method(name: str) -> Card:
    """The card of a way of pruning or masking. Raises: UsageError for any other edit."""
    usable = [card.name for card in methods("surgery", "edit") if _prunes(card) or _masks(card) or _drops(card)]
    if name not in usable:
        raise UsageError(f"--method {name} is no way of pruning: {did_you_mean(name, usable)}")
    return find("surgery", name, "edit")


def _prunes(card: Card) -> bool:
    return (
        isinstance(card.target, type) and issubclass(card.target, Pruning) and "multiple" in card.options().model_fields
    )


def _drops(card: Card) -> bool:
    return card.target is DropLayers


def _masks(card: Card) -> bool:
    return isinstance(card.target, type) and issubclass(card.target, Masking)


def _axes(card: Card, given: str | None) -> list[str]:
    """The options of the method that say how much stays. Raises: UsageError for one that it does not have."""
    able = [name for name in KINDS if name in card.options().model_fields]
    if given is None:
        return ["hidden", "width"] if "width" in able else able
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name not in able:
            raise UsageError(f"--axes {given}: {card.name} cuts {', '.join(able) or 'no axis'}, not '{name}'")
    return list(dict.fromkeys(names))


def _asked(model: Transformer, whole: Size, target: Target, card: Card, axes: Sequence[str]) -> ShrinkRequest:
    """What reaches the target. Raises: UsageError where nothing does."""
    if _masks(card):
        if not target.relative:
            raise UsageError(f"--method {card.name} masks weights, and frees no {target.unit}: give a share, as 0.5x")
        masking: Any = card.target
        edit = {"name": card.name, **masking.options_for(target.amount)}
        said = f"{card.name}: {target.amount:.0%} of the weights of each matrix stay, the others are kept at zero"
        return ShrinkRequest(card, edit, said, (), target.amount)

    def measure(cut: Transformer) -> Size:
        """Its time is told on the scale of the whole model's first, whatever else the machine does by now."""
        was, took = times_in_turns([model, cut])
        return replace(size_of(cut), seconds=whole.of("seconds") * ratio_in_turns(took, was))

    if _drops(card):
        stay, planned = layers_for(model, target, whole=whole, measure=measure)
        edit = {"name": card.name, "count": len(model.blocks) - stay, "by": "influence"}
        said = f"{card.name}: {stay} of {len(model.blocks)} layers stay, for {planned}"
        return ShrinkRequest(card, edit, said, ("layers",), stay / len(model.blocks))
    multiple = int(card.options().model_fields["multiple"].default)
    share, planned = share_for(model, target, axes, multiple, whole=whole, measure=measure)
    said = f"{card.name}: {share:.0%} of {' and '.join(axes)} stay, for {planned}"
    return ShrinkRequest(card, {"name": card.name, **dict.fromkeys(axes, share)}, said, tuple(axes), share)


def _native(opened: Opened, place: str) -> Transformer:
    if type(opened.model) is not Transformer:
        raise UsageError(
            f"{place} is {opened.about.kind}: what can be cut is known of native models, and of families with a bridge"
        )
    return opened.model


def _stages(
    opened: Opened, model: Transformer, whole: Size, path: Path, *, measured: bool
) -> tuple[list[Stage], Transformer, Tree]:
    """(the model as it was, as it was cut, and as it is now; the last; the run's configuration)."""
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
    del pruned  # its memory is wanted
    was, took = seconds_of_kept([opened.about.place, str(path)], plain=True)
    whole, now = replace(whole, seconds=was), replace(size_of(small), seconds=took)
    last = text(small, ledger, "healed") if text else None
    stages = [Stage("before", whole, before), Stage("pruned", now, after), Stage("healed", now, last)]
    return stages, small, plain(trained.config)


def _tell(screen: Screen, stages: Sequence[Stage], outcome: Outcome, zero: float) -> None:
    for stage in stages:
        loss = "" if stage.heldout is None else f", held-out {stage.heldout.loss:.4f}"
        screen.print(f"{stage.name:10} {stage.size}{loss}")
    before, after = stages[0].size, stages[-1].size
    bytes_stay, time_stays = after.bytes > 0.98 * before.bytes, _as_slow(before, after)
    if bytes_stay and time_stays:
        masked = (
            f"{zero:.0%} of its matrices' weights are zero, and all are stored and multiplied: " if zero > 0.01 else ""
        )
        screen.print(f"note: {masked}the result frees neither bytes nor time on this machine")
    elif time_stays:
        screen.print("note: a token takes as long as before: what was cut frees bytes, and no time on this machine")
    elif bytes_stay:
        screen.print("note: the weights take as many bytes as before: what was cut frees time alone")


def _as_slow(before: Size, after: Size) -> bool:
    """Whether a token takes as long as before: for the same operations on the same bytes, whatever the clock says."""
    same = (before.parameters, before.flops) == (after.parameters, after.flops)
    return same or after.of("seconds") > 0.98 * before.of("seconds")


def _answer(stages: Sequence[Stage], outcome: Outcome, scratch: Scratch) -> str:
    """What it cost, what it gained, and what as much training from scratch would have."""
    before, after = stages[0], stages[-1]
    ratio = before.size.of("seconds") / after.size.of("seconds")
    faster = "as long a token" if _as_slow(before.size, after.size) else f"{ratio:.2f} times as fast a token"
    loss = ""
    if before.heldout and after.heldout:
        loss = f", held-out {after.heldout.loss:.2f} where it was {before.heldout.loss:.2f}"
    return (
        f"for {price(outcome.summary)}: {after.size.parameters / before.size.parameters:.2f} times the parameters, {faster}{loss}; "
        f"from scratch for as many operations: {scratch}"
    )


def _measured(
    stages: Sequence[Stage],
    outcome: Outcome,
    asked: ShrinkRequest,
    curve: Healed,
    scratch: Scratch,
    zero: float,
    path: Path,
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
    return {
        "path": path,
        "method": asked.card.name,
        "axes": list(asked.axes),
        "share": asked.share,
        "zeros": zero,
        "stages": made,
        "spent": spent,
        "healing": {
            "predicted": curve.expected and curve.expected._asdict(),
            "seen": curve.seen,
            "came_to": curve.came_to,
        },
        "from_scratch": {"tokens": scratch.tokens, **scratch.expected._asdict(), "source": scratch.source},
    }
