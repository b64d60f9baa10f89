"""`shoestring tune`: teach a model that exists something new within a budget, and see what it forgets."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoestring.budget.units import show, show_seconds
from shoestring.cli.arguments import Arguments
from shoestring.cli.configuration_help import KEYS
from shoestring.cli.json_output import add_json_flag, print_json
from shoestring.cli.planning import moved_places
from shoestring.cli.run_view import RunView
from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.config import merge, overrides
from shoestring.errors import ShoestringError, UsageError
from shoestring.launch.launch import Launch
from shoestring.launch.sweep import TuningSpec, swept
from shoestring.launch.tuning import OLD, methods_of_tuning
from shoestring.launch.way import Ended
from shoestring.report.page import write_report
from shoestring.train.adapter_folder import export_adapter
from shoestring.train.trained import load_trained
from shoestring.tune.rate_to_batch import RateToBatch

ABOUT = (
    """\
The new text is --data.corpus: JSON lines of chats, {"messages": [...]}, of which the assistant's answers are learnt, through the
model's own chat template; or any text. A tenth of the chats (2 % of other text) is held out, and what is gained is judged on it.

The old text (--old) is of the kind that the model knew: how much worse it becomes is what was forgotten. Both are judged before
the first step, on the way and at the end; RUN/report.html has them in one plot.

Adapters are written to RUN/adapter as peft does, where peft has their kind: `shoestring generate RUN/adapter` uses them, and so
does PeftModel.from_pretrained. `shoestring export RUN --to transformers` merges them.

"""
    + KEYS
)


def run(words: Sequence[str]) -> int:
    parser = Arguments("tune", "Teach a model that exists something new within a budget.", ABOUT)
    parser.add_argument(
        "place",
        nargs="?",
        metavar="PLACE",
        help="a folder of a run or of transformers, a GGUF file, hf:NAME, or smollm2",
    )
    parser.add_argument(
        "--method", default="lora", metavar="NAME", help=f"{', '.join(methods_of_tuning())} (default: lora)"
    )
    parser.add_argument(
        "--packed",
        action="store_true",
        help="matrices of the base that are packed stay so (QLoRA): less memory; a quantised folder, or GGUF in Q4_0, Q4_1, Q8_0",
    )
    parser.add_argument(
        "--old",
        default=OLD,
        metavar="CORPUS",
        help=f"what forgetting is judged on (default: {OLD}); 'none' judges none",
    )
    parser.add_argument(
        "--replay",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="how much of what is read is of the old text, so that less is forgotten (default: none)",
    )
    parser.add_argument(
        "--sweep",
        type=float,
        metavar="SHARE",
        help="first try rates and batches (SmolTulu's ratios) with this share of the budget, in runs beside --out",
    )
    parser.add_argument("--out", type=Path, help="the run's folder (default: runs/DATE-TIME)")
    parser.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with a run from its newest checkpoint, exactly"
    )
    add_json_flag(parser, "losses before and after, what was spent and where the adapters are")
    found, rest = parser.read_with_configuration(words)
    if bool(found.resume) == bool(found.place):
        raise UsageError("name what is to be tuned, PLACE, or the run to go on with: --resume RUN")
    if found.resume and found.sweep is not None:
        raise UsageError("--resume goes on with a run as it is: give no --sweep with it")
    if found.resume and found.packed:
        raise UsageError("--resume goes on with a run as it is: give no --packed with it")
    if found.resume and found.out:
        raise UsageError("--resume goes on with a run as it is: give no --out with it")
    console = Screen(stderr=found.json)
    out = found.out or Path("runs") / datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    sweep: dict[str, Any] = {}
    with shown_on(console), Launch(RunView(console)) as launch:
        if found.resume:
            ended = launch.resume(found.resume, None, moved_places(rest))
        else:
            old = "" if found.old == "none" else found.old
            asked = overrides(rest)
            if found.packed:
                asked = merge({"model": {"packed": True}}, asked)
            tuning = TuningSpec(found.place, found.method, asked, old, found.replay)
            if found.sweep is None:
                request = tuning.request({})
            else:
                done = swept(tuning, RateToBatch(), found.sweep, out.with_name(f"{out.name}-sweep"), launch)
                if done.request is None:
                    console.print(
                        "stopped; the same command with the same --out goes on with the sweep", soft_wrap=True
                    )
                    return 128 + (done.signal or 0)
                request, sweep = done.request, done.told
                console.print(_line_of_sweep(sweep), style="bold", soft_wrap=True)
            ended = launch.begin(request, out)
        if ended.outcome.stopped == "finished":
            told = _conclude(ended, console) | ({"sweep": sweep} if sweep else {})
            if found.json:
                print_json(told)
        else:
            console.print(f"stopped; go on with: shoestring tune --resume {ended.folder.path}", soft_wrap=True)
    return 0 if ended.outcome.signal is None else 128 + ended.outcome.signal


def _conclude(ended: Ended, console: Screen) -> dict[str, Any]:
    """Tell what was gained and forgotten. Returns what `--json` prints."""
    folder, summary = ended.folder, ended.outcome.summary
    both: dict[str, Any] = summary.get("tuning", {})
    new, old = both.get("new", {"after": summary["heldout_loss"]}), both.get("old", {})
    console.print(_line("new text", new, "gain", "gained"), style="bold", soft_wrap=True)
    if old:
        console.print(_line("old text", old, "forgotten", "forgotten"), style="bold", soft_wrap=True)
    spent = (
        f"{show_seconds(summary['seconds'])}, {show('tokens', summary['tokens'])}, {show('flops', summary['flops'])}"
    )
    console.print(
        f"{summary['steps']} steps, {spent}, {show('bytes', summary['peak_memory'])} of memory at most", soft_wrap=True
    )
    told = {"run": folder.path, **both, "adapter": None}
    told |= {key: summary[key] for key in ("steps", "tokens", "seconds", "flops", "peak_memory", "accounts")}
    trained = load_trained(folder.path)
    if trained.applied:
        target = folder.path / "adapter"
        try:
            size = export_adapter(trained, target)
        except UsageError as error:
            console.print(f"no adapter's folder: {error}", soft_wrap=True)
        else:
            told["adapter"] = target
            console.print(f"adapters: {target} ({show('bytes', size)})", soft_wrap=True)
    try:
        told["report"] = write_report([folder.path])
        console.print(f"report: {told['report']}", soft_wrap=True)
    except OSError as error:
        raise ShoestringError(f"the run is whole, its report was not written: {error.strerror}") from None
    return told


def _line_of_sweep(found: dict[str, Any]) -> str:
    """What a sweep came to, and took."""
    parts = [f"{len(found['tried'])} settings tried in {show_seconds(found['spent']['seconds'])}"]
    for name, one in found["found"].items():
        edge = ", at the edge of those tried" if one["edge"] else ""
        parts.append(f"best on {name} text: rate {one['rate']:.3g} with batch {one['batch']}{edge}")
    return "; ".join(parts)


def _line(what: str, found: dict[str, Any], key: str, word: str) -> str:
    """'new text: 3.1204 nats a token before, 2.6021 after: 0.5183 gained'."""
    if key not in found:
        return f"{what}: {found['after']:.4f} nats a token after"
    return f"{what}: {found['before']:.4f} nats a token before, {found['after']:.4f} after: {found[key]:+.4f} {word}"
