"""`shoestring evaluate`: how likely models hold a text, in nats a token and bits a byte, and what measuring it took; or how many
problems of a task they answer rightly."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from shoestring.base import Opened, open_model
from shoestring.base.interval import CONFIDENCE, Estimate
from shoestring.base.likelihood import TextLikelihood, first_tokens, likelihood, window
from shoestring.base.text import Text, read_text
from shoestring.budget.ledger import DATA, EVALUATE, EVALUATION, START, Ledger, peak_memory
from shoestring.budget.units import show, show_seconds
from shoestring.cli.arguments import TYPES_HELP, Arguments, dtype_named, whole
from shoestring.cli.json_output import add_json_flag, print_json
from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.cli.tasks import add_task_flags, check_flags, run_task
from shoestring.config import Tree, build, merge, overrides
from shoestring.data.config import DataConfig
from shoestring.errors import UsageError, did_you_mean

TEXT = ("corpus", "heldout", "text_field", "encoding", "invalid")
"""The keys of [data] that say what text there is. The others are of tokens and windows, which are the model's own here."""

TOKENS = 65536
"""To read, where nothing is said."""

CHARACTERS = 16
"""Characters of text to have at hand for each token that is asked for: more than tokens have on average."""

PURPOSES = """\
A PLACE is the folder of a run, of a packed model, of experts or of a transformers model, a GGUF file, hf:NAME@REVISION or
smollm2. Several are measured on the same bytes and compared with the first: bits a byte, with an interval of the difference.

The text is the held-out part of --data.corpus: the documents that a run with the same --data.heldout does not train on.
Where nothing is said, corpus and share are those of the first PLACE, if it is a run, and else Python's standard library.
--data.text_field, --data.encoding and --data.invalid say how it is read.

Each document is read by itself, in windows one after the other. Intervals are over documents, as windows of one document are
alike; a text of few documents is cut into 16 stretches, and its interval may then be too narrow.

With --task NAME they are asked problems with answers that can be checked, the same for all: how many are right, with an interval,
and what a problem takes. `shoestring methods task` lists the tasks; `shoestring methods NAME` has the options of one.
"""


def run(words: Sequence[str]) -> int:
    parser = Arguments("evaluate", "Measure how likely models hold a text: nats a token and bits a byte.", PURPOSES)
    parser.add_argument("places", nargs="+", metavar="PLACE", help="a model, or several to compare")
    parser.add_argument("--all", action="store_true", help="measure on the whole corpus, not on its held-out part")
    parser.add_argument(
        "--tokens",
        type=whole(1, 1 << 40),
        metavar="N",
        help="about how many tokens of the first PLACE to read (default 65536)",
    )
    parser.add_argument(
        "--context", type=whole(1, 1 << 24), metavar="N", help="tokens of a window (default: the model's)"
    )
    parser.add_argument(
        "--dtype",
        type=dtype_named,
        metavar="TYPE",
        help=TYPES_HELP,
    )
    add_task_flags(parser, whole)
    add_json_flag(parser, "what was measured on what, and the differences")
    found, configuration = parser.read_with_configuration(words)
    check_flags(found)
    flags = overrides(configuration)
    if found.task is not None:
        return run_task(found, flags)
    asked = asked_text(flags)
    tokens = found.tokens or TOKENS
    build(DataConfig, asked, _flag)  # what is wrong in it is said before a model is opened
    screen, ledger = Screen(soft_wrap=True, stderr=found.json), Ledger()
    text: Text | None = None
    rows: list[dict[str, Any]] = []
    measured: list[TextLikelihood] = []
    for place in found.places:
        with ledger.clock(START):
            opened = open_model(place, found.dtype)
        if opened.tokenizer is None:
            raise UsageError(f"{place} has no tokenizer: text cannot be made its tokens")
        window(opened.model, found.context)  # said before the text is read
        if text is None:
            with shown_on(screen, before=""), ledger.clock(DATA):
                text = text_for(opened, asked, tokens, whole=found.all)
            screen.print(f"measured on  {text.said}")
        with ledger.clock(EVALUATE):
            measured.append(likelihood(opened.model, opened.tokenizer, text, found.context))
        ledger.charge(measured[-1].spent, EVALUATION)
        ledger.write("evaluate", place=place)
        rows.append(_row(place, opened, measured[-1], text, ledger))
        _tell(screen, rows[-1], measured[-1])
        del opened  # before the next one is opened
    assert text is not None
    differences = [
        {"place": place, "base": found.places[0], "bits_per_byte": one.over(measured[0])}
        for place, one in zip(found.places[1:], measured[1:], strict=True)
    ]
    for each in differences:
        _tell_difference(screen, each)
    if found.json:
        about = {
            "corpus": text.corpus,
            "heldout": text.heldout,
            "documents": len(text.documents),
            "documents_there": text.total,
            "bytes": text.bytes,
            "intervals_over": measured[0].units.kind,
            "confidence": CONFIDENCE,
        }
        print_json({"text": about, "places": rows, "differences": differences})
    return 0


def _flag(key: str) -> str:
    return f"--data.{key}"


def asked_text(given: Tree) -> Tree:
    """The [data] section of the flags. Raises: UsageError for anything else, and for keys that have no meaning here."""
    for section in given:
        if section == "task":
            raise UsageError("--task.OPTION goes with --task NAME, which is not given")
        if section != "data":
            raise UsageError(f"--{section}: no key of a run is heeded here but --data.{', --data.'.join(TEXT)}")
    asked: Tree = given.get("data", {})
    for key in asked:
        if key in ("tokenizer", "vocabulary", "packing", "documents"):
            raise UsageError(f"--data.{key}: the model's own tokenizer and windows are taken, so leave it out")
        if key not in TEXT:
            raise UsageError(f"--data.{key} is unknown: {did_you_mean(key, TEXT)}")
    return asked


def text_for(opened: Opened, asked: Tree, tokens: int, *, whole: bool) -> Text:
    """What to measure on: what is asked for, laid over what the first model was trained on."""
    own: Mapping[str, Any] = opened.about.values.get("data", {})
    if own.get("source") and "corpus" not in asked:
        raise UsageError("the first model was trained on several sources: say which text is meant with --data.corpus")
    config = build(DataConfig, merge({key: own[key] for key in TEXT if key in own}, asked), _flag)
    text = read_text(config, CHARACTERS * tokens, whole=whole)
    assert opened.tokenizer is not None
    return first_tokens(text, opened.tokenizer, tokens)


def _row(place: str, opened: Opened, found: TextLikelihood, text: Text, ledger: Ledger) -> dict[str, Any]:
    """What `--json` prints of a place."""
    seconds = ledger.entries[-1]["seconds"]
    took = seconds.get(EVALUATE, 0.0)
    notes = list(opened.about.notes) + _trained_on(opened, text)
    return {
        "place": place,
        "kind": opened.about.kind,
        "digest": opened.about.digest,
        "weights": _types(opened.model),
        "context": found.context,
        "bits_per_byte": found.bits_per_byte,
        "nats_per_token": found.nats_per_token,
        "targets": found.targets,
        "bytes_per_token": text.bytes / found.targets,
        "seconds": took,
        "seconds_to_open": seconds.get(START, 0.0),
        "tokens_per_second": found.targets / took if took else None,
        "accounts": {EVALUATION: found.spent.as_dict()},
        "peak_memory": peak_memory(),
        "notes": notes,
    }


def _types(model: Any) -> list[str]:
    """The types of a model's weights in floating point."""
    parts = [model] if isinstance(model, nn.Module) else list(getattr(model, "experts", ()))
    types = {str(p.dtype).removeprefix("torch.") for part in parts for p in part.parameters() if p.is_floating_point()}
    return sorted(types)


def _trained_on(opened: Opened, text: Text) -> list[str]:
    """A warning where a run was trained on some of the text."""
    own: Mapping[str, Any] = opened.about.values.get("data", {})
    corpora = [source["corpus"] for source in own.get("source", ())] or [own.get("corpus")]
    if text.corpus not in corpora:
        return []
    if text.heldout is None:
        return [f"trained on this corpus, all but {own['heldout']:.1%}, which it held out: this is no held-out figure"]
    if own["heldout"] < text.heldout:
        return [f"held out {own['heldout']:.1%} of this corpus, and so was trained on some of this text"]
    return []


def _interval(found: Estimate) -> str:
    return "too few for an interval" if found.low is None else f"{found.low:.4f} to {found.high:.4f}"


def _tell(screen: Screen, row: dict[str, Any], found: TextLikelihood) -> None:
    types = f", {', '.join(row['weights'])}" if row["weights"] else ""
    screen.print(f"{row['place']} ({row['kind']}{types}; windows of {found.context:,} tokens)", style="bold")
    bits, nats = found.bits_per_byte, found.nats_per_token
    over = f"{CONFIDENCE:.0%}, over {len(found.units.sizes)} {found.units.kind}"
    screen.print(f"  {bits.value:.4f} bits a byte   ({_interval(bits)}: {over})")
    each = f"{found.targets:,} tokens of {row['bytes_per_token']:.2f} bytes"
    screen.print(f"  {nats.value:.4f} nats a token  ({_interval(nats)}), {each}")
    spent, rate = found.spent, row["tokens_per_second"]
    screen.print(
        f"  {show_seconds(row['seconds'])} ({'-' if rate is None else f'{rate:,.0f}'} tokens/s), {show('flops', spent.flops)} on "
        f"the account '{EVALUATION}', {spent.read:,} positions read; {show('bytes', row['peak_memory'])} of memory at most"
    )
    for note in row["notes"]:
        screen.print(f"  note: {note}")


def _tell_difference(screen: Screen, each: dict[str, Any]) -> None:
    found: Estimate = each["bits_per_byte"]
    verdict = "a difference is shown" if found.shown else "no difference is shown"
    screen.print(
        f"{each['place']} - {each['base']}: {found.value:+.4f} bits a byte ({_interval(found)}, paired): {verdict}"
    )
