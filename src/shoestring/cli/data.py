"""`shoestring data`: a corpus curated: what is dropped and why, what it cost, and what is kept as a corpus of its own."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from shoestring.base.author import open_author
from shoestring.base.prefix_author import open_prefix_author
from shoestring.base.scorer import open_scorer
from shoestring.budget.ledger import DATA, SELECTION, Ledger, peak_memory
from shoestring.budget.ledger import account as declare_account
from shoestring.budget.machine import cache_folder
from shoestring.budget.units import show, show_seconds
from shoestring.cli.arguments import Arguments, seconds_above_zero
from shoestring.cli.json_output import add_json_flag, print_json
from shoestring.cli.screen import Screen
from shoestring.cli.screen_log import shown_on
from shoestring.config import Choice, PickList, Tree, build, overrides
from shoestring.data.config import DataConfig
from shoestring.data.corpus import open_corpus
from shoestring.data.curation.account import Account
from shoestring.data.curation.curate import Curated, curate
from shoestring.data.curation.documents import CorpusSource, open_documents
from shoestring.data.curation.written import card, write
from shoestring.data.phrases import find_phrases
from shoestring.data.synthesis.synthesise import SYNTHESIS, synthesise, write_synthesised
from shoestring.errors import UsageError, did_you_mean

TEXT = ("text_field", "encoding", "invalid", "control_field")
"""The keys of [data] that say how text is read."""

PURPOSES = """\
CORPUS is what --data.corpus of a run takes: a folder, a glob or a file (text, .jsonl, .parquet; also .gz and .zst), hf:NAME,
python-stdlib. Curators are applied in the order given, each to what those before it kept:

  shoestring data pages --filter quality_rules,minhash --filter.minhash.threshold 0.7 --out kept

`shoestring methods data` lists them (kind 'curation'), `shoestring methods NAME` their options. --dedup adds exact_duplicates
and minhash at the end. Text is read as a stream, so a corpus may exceed memory. What is worked out is kept in the cache: where
the command is stopped, or its --seconds are spent, the same command goes on from there.

FOLDER gets documents/ (with their columns), data-card.json, and with --keep-dropped also dropped/, each with its reason. It is a
corpus: `shoestring train --data.corpus FOLDER`. Without --out nothing is written, and only the report is made.

--synthesis wrap --synthesis.author PLACE has a model that was tuned to answer tell what is kept anew. FOLDER is then what it wrote,
each text beside its passage; train on both, each as a [[data.source]]. --synthesis soft_srv has any model write
more texts like them.

--find PHRASE only tells how often a phrase stands in CORPUS, and where; it may be given several times.

--data.text_field, --data.encoding and --data.invalid say how text is read: what is no text is refused, replaced or skipped.
--data.control_field FIELD writes a document's field before and after its text, as control codes.
"""

CURATION = PickList("curation", ("data",))

SYNTHESIS_ACCOUNT = declare_account("synthesis", "text that a model makes to train on")


@dataclass(frozen=True)
class CurationRequest:
    """filter: the curators, in order. data: how text is read. synthesis: what makes text of what is kept."""

    data: DataConfig
    filter: Annotated[tuple[Choice, ...], CURATION] = ()
    synthesis: Annotated[Choice, SYNTHESIS] | None = None


def run(words: Sequence[str]) -> int:
    parser = Arguments("data", "Curate a corpus: report what is dropped and why, and write what is kept.", PURPOSES)
    parser.add_argument("corpus", metavar="CORPUS", help="what to curate")
    parser.add_argument(
        "--dedup", action="store_true", help="drop copies and near-duplicates, after all other curators"
    )
    parser.add_argument("--out", metavar="FOLDER", help="where to write what is kept")
    parser.add_argument("--format", default="jsonl", metavar="FORMAT", help="of what is written: jsonl or parquet")
    parser.add_argument("--keep-dropped", action="store_true", help="write what is dropped too, each with its reason")
    parser.add_argument(
        "--seconds", type=seconds_above_zero, metavar="N", help="how long it may take (default: any time)"
    )
    parser.add_argument(
        "--find",
        action="append",
        metavar="PHRASE",
        help="say how often a phrase stands in CORPUS, and where; do nothing else",
    )
    add_json_flag(parser, "the data card")
    found, configuration = parser.read_with_configuration(words)
    if found.find:
        return _find(found, overrides(configuration))
    request = _request(found.corpus, overrides(configuration), dedup=found.dedup)
    if found.format not in ("jsonl", "parquet"):
        raise UsageError(f"--format {found.format}: {did_you_mean(found.format, ('jsonl', 'parquet'))}")
    if found.keep_dropped and not found.out:
        raise UsageError("--keep-dropped is about what is written: give --out FOLDER too")
    if request.synthesis is not None and (not found.out or found.keep_dropped or found.format != "jsonl"):
        raise UsageError(
            f"--synthesis {request.synthesis.name} writes what a model makes, as JSON lines: give --out FOLDER, and neither "
            "--keep-dropped nor --format"
        )
    out = None if found.out is None else _free(Path(found.out))
    screen, ledger = Screen(soft_wrap=True, stderr=found.json), Ledger()
    account = Account(found.seconds, open_scorer, open_author=open_author, open_prefix_author=open_prefix_author)
    with shown_on(screen, before=""), ledger.clock(DATA):
        text = request.data.text
        source = CorpusSource(open_corpus(found.corpus, text), repr(text))
        documents = open_documents(source, cache_folder(), account)
        if not len(documents):
            raise UsageError(f"corpus '{found.corpus}' holds no text")
        for line in documents.notes:
            screen.print(line)
        screen.print(f"{len(documents):,} documents, {show('bytes', int(documents.bytes.sum()))} of text")
        curated = curate(documents, request.filter, account)
        ledger.charge(account.spent, SELECTION)
        described = card(curated, found.corpus, _options(request.data), account.taken)
        if request.synthesis is not None and out is not None:
            described |= _synthesise(curated, request.synthesis, account, ledger, described, out)
        elif out is not None:
            write(curated, out, described, found.format, dropped=found.keep_dropped)
    ledger.write("data")
    _tell(screen, curated, account.taken, out)
    if found.json:
        print_json({**described, "seconds": account.taken, "peak_memory": peak_memory(), "out": out and str(out)})
    return 0


def _find(found: Namespace, given: Tree) -> int:
    """Look for phrases, with nothing curated. Raises: UsageError where more is asked for."""
    if found.out or found.dedup or found.keep_dropped or set(given) - {"data"}:
        raise UsageError("--find only looks: leave --filter, --dedup, --synthesis, --out and --keep-dropped out")
    request, screen = _request(found.corpus, given, dedup=False), Screen(soft_wrap=True, stderr=found.json)
    with shown_on(screen, before=""):
        told = find_phrases(open_corpus(found.corpus, request.data.text).documents(), found.find)
    if found.json:
        print_json({"corpus": found.corpus, "phrases": [asdict(one) for one in told]})
        return 0
    for one in told:
        screen.print(f"'{one.phrase}': {one.times:,} times in {one.documents:,} documents")
        for number, around in one.places:
            screen.print(f"  document {number:,}: {around}")
    return 0


def _synthesise(
    curated: Curated, choice: Choice, account: Account, ledger: Ledger, described: Mapping[str, Any], out: Path
) -> dict[str, Any]:
    """Write what a model makes of what is kept. Returns what the card says of it."""
    before = account.spent
    made = synthesise(curated.remaining, choice, account, cache_folder())
    ledger.charge(account.spent + -before, SYNTHESIS_ACCOUNT)
    more = {"synthesis": {"name": choice.name, "options": dict(choice.options)}}
    write_synthesised(made, out, {**described, **more})
    return {**more, "synthesised": {"texts": made.kept, "bytes": made.bytes, "dropped": dict(made.dropped)}}


def _request(corpus: str, given: Tree, *, dedup: bool) -> CurationRequest:
    """What the flags ask for. Raises: UsageError."""
    for section in given:
        if section not in ("data", "filter", "synthesis"):
            raise UsageError(f"--{section}: no key of a run is heeded here but --data.{', --data.'.join(TEXT)}")
    for key in given.get("data", {}):
        if key not in TEXT:
            raise UsageError(f"--data.{key}: {did_you_mean(key, TEXT)}")
    data = {**given.get("data", {}), "corpus": corpus}
    request = build(CurationRequest, {**given, "data": data}, lambda key: f"--{key}")
    asked = request.filter
    if dedup:
        names = {choice.name for choice in asked}
        more = [name for name in ("exact_duplicates", "minhash") if name not in names]
        asked += tuple(Choice.of("data", name, kind="curation") for name in more)
    for choice in asked:
        choice.build()  # options that do not go together are refused before any work
    if len({choice.name for choice in asked}) < len(asked):
        raise UsageError("--filter: each curator is given once")
    if request.synthesis is not None:
        request.synthesis.build()
    return CurationRequest(request.data, asked, request.synthesis)


def _free(out: Path) -> Path:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty: name another with --out")
    return out


def _options(data: DataConfig) -> dict[str, Any]:
    return {key: getattr(data, key) for key in TEXT}


def _tell(screen: Screen, curated: Curated, seconds: float, out: Path | None) -> None:
    left = curated.remaining
    before, after = int(curated.documents.bytes.sum()), int(left.bytes.sum())
    screen.print(
        f"kept {len(left):,} of {len(curated.documents):,} documents, {show('bytes', after)} of {show('bytes', before)} "
        f"({after / before:.1%}), in {show_seconds(seconds)}"
    )
    if out is not None:
        screen.print(f"written to {out}: train on it with --data.corpus {out}")
