"""`shoestring stages`: several runs one after the other, each on the model of the one before, within one budget."""

import datetime
from collections.abc import Sequence
from pathlib import Path

from shoestring.budget.units import show, show_seconds
from shoestring.cli.arguments import Arguments
from shoestring.cli.json_output import add_json_flag, print_json
from shoestring.cli.run_view import RunView
from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.errors import UsageError
from shoestring.launch.launch import Launch
from shoestring.launch.stages import StagesConfig, StagesEnded, StagesFolder, run_stages

ABOUT = """\
FILE is TOML:

    base = "smollm2"            the model that the first stage begins with; none: it trains a new one
    budget = "20m"              of all stages together
    old = "python-stdlib"       the corpus that forgetting is judged on; none: it is not judged
    task = "arithmetic"         of which problems are asked before the first stage and after each; none: nothing is asked
    problems = 100

    [[stage]]
    name = "chats"
    share = 0.6                 of the budget
    method = "lora"             as `shoestring tune` has it; without it the stage is a run as `shoestring train` has it
    replay = 0.2                as `shoestring tune` has it
    [stage.run.data]            keys of the run's configuration
    corpus = "chats.jsonl"

Each stage is a run's folder in the folder of all. What is finished is not done again, and a run that was killed goes on from its
newest checkpoint: give --resume FOLDER. recipes/tune/stages/ has examples."""


def run(words: Sequence[str]) -> int:
    parser = Arguments(
        "stages", "Train in stages, each on the model of the one before, with a share of one budget.", ABOUT
    )
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the stages, as TOML")
    parser.add_argument("--budget", metavar="BUDGET", help="of all stages, in place of the file's")
    parser.add_argument("--out", type=Path, help="the folder (default: runs/stages-DATE-TIME)")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on; what is finished is not done again")
    add_json_flag(parser, "what each stage came to, and what all took")
    found = parser.read(words, mixed=True)
    if bool(found.file) == bool(found.resume):
        raise UsageError("name the stages, FILE, or the folder to go on with: --resume FOLDER")
    if found.resume and (found.out or found.budget):
        raise UsageError("--resume goes on with stages as they are: give no --out and no --budget with it")
    console = Screen(stderr=found.json)
    if found.resume:
        at_work = StagesFolder.opened(found.resume)
    else:
        name = datetime.datetime.now().strftime("stages-%Y-%m-%d-%H%M%S")
        out = found.out or Path("runs") / name
        at_work = StagesFolder.create(out, StagesConfig.read(found.file, found.budget))
    with shown_on(console), at_work as folder, Launch(RunView(console)) as launch:
        ended = run_stages(folder, launch)
        if ended.signal is None:
            _conclude(ended, console)
            if found.json:
                print_json({**ended.summary, "folder": folder.path})
        else:
            console.print(f"stopped; go on with: shoestring stages --resume {folder.path}", soft_wrap=True)
    return 0 if ended.signal is None else 128 + ended.signal


def _conclude(ended: StagesEnded, console: Screen) -> None:
    """A line a stage, and what all took."""
    for row in ended.summary["stages"]:
        parts = []
        if "heldout_loss" in row:
            parts.append(f"held-out loss {row['heldout_loss']:.4f}")
        if "gain" in row.get("tuning", {}).get("new", {}):
            parts.append(f"{row['tuning']['new']['gain']:+.4f} gained")
            parts.append(f"{row['tuning']['old']['forgotten']:+.4f} forgotten")
        if "accuracy" in row:
            between = "" if row["low"] is None else f" ({row['low']:.1%} to {row['high']:.1%})"
            parts.append(f"{row['accuracy']:.1%} right{between}")
        if "seconds" in row:
            parts.append(f"{show_seconds(row['seconds'])}, {show('tokens', row['tokens'])}")
        console.print(f"{row['stage']}: {', '.join(parts)}", style="bold", soft_wrap=True)
    found = ended.summary
    console.print(
        f"all stages took {show_seconds(found['seconds'])} and {show('flops', found['flops'])} of {found['budget']}; judging "
        f"between them {show_seconds(found['judging_seconds'])} more",
        soft_wrap=True,
    )
