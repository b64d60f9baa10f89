"""`shoestring compare --models`: models that exist, as they are used."""

import argparse
from collections.abc import Sequence
from typing import Any

from shoestring.base.open_model import open_model
from shoestring.cli.evaluate import asked_text, text_for
from shoestring.cli.json_output import print_json
from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.compare.models import Hold, Used, judge_models, said, to_json, used
from shoestring.config import overrides
from shoestring.errors import UsageError

TOKENS = 16384
TOLERANCE = 0.05


def add_model_flags(parser: argparse.ArgumentParser, whole: Any, share: Any) -> None:
    """What models are compared by. whole, share: types of flags, see `cli.arguments`."""
    group = parser.add_argument_group("models that exist (--models)")
    group.add_argument("--models", nargs="+", metavar="PLACE", help="the base first: places as `evaluate` takes them")
    group.add_argument(
        "--hold",
        choices=("bytes", "seconds"),
        help="what must be the same: bytes of weights (default) or seconds a token",
    )
    group.add_argument("--tolerance", type=share, metavar="SHARE", help="by which it may differ (default 5%%)")
    group.add_argument(
        "--text-tokens", type=whole(1, 1 << 40), metavar="N", help=f"of the text, about (default {TOKENS})"
    )


def run_models(found: argparse.Namespace, rest: Sequence[str]) -> int:
    """Measure each model on the same bytes of text, and judge. Raises: UsageError."""
    for name in ("recipes", "tune", "until_decided", "keep_runs", "runs_of", "base", "resume", "again", "source", "on"):
        if getattr(found, name):
            raise UsageError(f"--models goes with places alone: leave {name.replace('_', '-')} out")
    if len(found.models) < 2:
        raise UsageError("a comparison needs two models or more: give the base first")
    asked, screen = asked_text(overrides(rest)), Screen(stderr=found.json)
    measured, text = list[Used](), None
    hold: Hold = found.hold or "bytes"
    for place in found.models:
        opened = open_model(place)
        if opened.tokenizer is None:
            raise UsageError(f"{place} has no tokenizer: text cannot be made its tokens")
        if text is None:
            with shown_on(screen, before=""):
                text = text_for(opened, asked, found.text_tokens or TOKENS, whole=False)
            screen.print(f"measured on  {text.said}", soft_wrap=True)
        measured.append(used(place, text, opened=opened))
        screen.print(str(measured[-1]), soft_wrap=True)
        del opened  # before the next one is opened
    tolerance = TOLERANCE if found.tolerance is None else found.tolerance
    weighed = judge_models(measured, hold, tolerance, found.confidence)
    for one in weighed:
        screen.print(said(one, hold), soft_wrap=True, style="bold")
    if found.json:
        print_json(to_json(measured, weighed, hold))
    return 0


def check_model_flags(found: argparse.Namespace) -> None:
    """Raises: UsageError for flags that go with --models where there is none."""
    for name in ("hold", "tolerance", "text_tokens"):
        if getattr(found, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} goes with --models PLACE PLACE: leave it out")
