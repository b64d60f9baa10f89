"""The page of methods, in Markdown: what each method's source claims, and what was measured of it here.

python -m shoestring.report.methods_page            # writes docs/methods.md from the cards and evidence/
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from shoestring import atomic
from shoestring.config import build, read_toml
from shoestring.errors import ShoestringError, UsageError
from shoestring.json_files import Row
from shoestring.method import Card, methods
from shoestring.report import quantities
from shoestring.report.comparison_files import read_arm, read_verdict
from shoestring.report.differences import differing, flat
from shoestring.report.verdict_records import ComparisonRecord, VerdictRecord
from shoestring.report.verdict_words import confidence, interval, signed

_ARXIV = re.compile(r"arXiv:([a-z-]+(?:\.[A-Z]{2})?/\d{7}|\d{4}\.\d{4,5})(?:v\d+)?", re.IGNORECASE)
_SECTIONS = {
    "fallback": ("optim", ""),
    "batch_size": ("schedule", "batch"),
    "data.rows": ("data", "packing"),
    "lowbit": ("lowbit", "format"),
    "sync": ("sync", "outer loop"),
}
"""(engine, kind) of the methods in sections of a configuration that are named after neither."""

Slot = tuple[str, str, str]
"""(engine, kind, name): what tells methods apart."""


@dataclass(frozen=True)
class Measured:
    """A comparison of the evidence and the methods it set apart.

    new: the methods of the candidate that the base does not use there. base: those of the base in their place.
    changed: 'key = value' of what else is not the same, but for what tuning chose.
    """

    folder: str
    verdict: VerdictRecord
    comparison: ComparisonRecord
    new: dict[str, Slot]
    base: dict[str, Slot]
    changed: list[str]


@dataclass(frozen=True)
class Finding:
    """What was measured of a method by other means than a comparison.

    engine, kind, name: the method. said: the finding, in plain words. evidence: the file it is in, under the evidence folder.
    """

    engine: str
    name: str
    said: str
    evidence: str
    kind: str = ""


@dataclass(frozen=True)
class Notes:
    """evidence/notes.toml. arms: folder -> arm -> what a reader of its verdict must know of how it was set. findings: a list."""

    arms: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


def read_notes(evidence: Path, measured: Sequence[Measured], cards: Sequence[Card]) -> Notes:
    """The notes beside the evidence; none where there is no notes.toml.

    Raises: UsageError where it is damaged, or speaks of a comparison, an arm, a method or a file that there is not.
    """
    path = evidence / "notes.toml"
    if not path.exists():
        return Notes()
    notes = build(Notes, read_toml(path))
    known = {(one.folder, one.comparison.candidate) for one in measured}
    slots = {(card.engine, card.kind, card.name) for card in cards}
    for folder, arms in notes.arms.items():
        for arm in arms:
            if (folder, arm) not in known:
                raise UsageError(f"{path} has a note on {arm} in {folder}, and there is no such candidate")
    for one in notes.findings:
        if (one.engine, one.kind, one.name) not in slots:
            raise UsageError(f"{path} has a finding on {one.engine} {one.kind} {one.name}, and there is no such method")
        if not (evidence / one.evidence).is_file():
            raise UsageError(f"{path} refers to {one.evidence}, and there is no such file")
    return notes


def _slots(config: Row, cards: Sequence[Card]) -> dict[str, Slot]:
    """The methods a configuration uses, by the dotted key that chooses them ('optim', 'model.norm')."""
    found = {}
    for key, value in flat(config).items():
        path = key.removesuffix(".name")
        above, _, last = path.rpartition(".")
        for card in cards:
            if path in _SECTIONS:
                chosen = (card.engine, card.kind) == _SECTIONS[path]
            elif card.kind:
                chosen = card.kind == last.replace("_", " ") and above in ("", card.engine)
            else:
                chosen = card.engine == path
            if chosen and value == card.name:
                found[path] = (card.engine, card.kind, card.name)
    return found


def _settings(arm: Row, base: Row, slots: set[str], tuned: set[str]) -> list[str]:
    """What else was set differently, as 'key = value'; the options of a method that differs are part of it."""
    words = []
    for key, (_, value) in differing([base, arm]):
        inside = any(key == slot or key.startswith(f"{slot}.") for slot in slots)
        if not (inside or key in tuned):
            words.append(f"{key} = {'absent' if value is None else value}")
    return words


def _read(folder: Path, cards: Sequence[Card]) -> Iterator[Measured]:
    verdict = read_verdict(folder)
    for comparison in verdict.ranked:
        own, base = read_arm(folder, comparison.candidate), read_arm(folder, comparison.base)
        mine, theirs = _slots(own, cards), _slots(base, cards)
        apart = {key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)}
        tuned = {
            key
            for arm in (comparison.candidate, comparison.base)
            if (tuning := verdict.arms[arm].tuning) is not None
            for key in tuning.chosen or {}
        }
        yield Measured(
            folder.name, verdict, comparison, {key: slot for key, slot in mine.items() if key in apart},
            {key: slot for key, slot in theirs.items() if key in apart}, _settings(own, base, apart, tuned),
        )  # fmt: skip


def read_evidence(evidence: Path, cards: Sequence[Card]) -> list[Measured]:
    """Every comparison under `evidence`, by folder and then in order of effect.

    Raises: UsageError when `evidence` is no folder; ShoestringError when one of its files is missing or damaged.
    """
    if not evidence.is_dir():
        raise UsageError(f"no such evidence: {evidence} is not a folder")
    # of ways to train: those of ways to decode have terms.toml
    folders = sorted(
        path.parent for path in evidence.glob("*/verdict.json") if not (path.parent / "terms.toml").exists()
    )
    return [measured for folder in folders for measured in _read(folder, cards)]


def _plain(text: str) -> str:
    """Text that Markdown shows as it stands; code between backticks stays code."""
    parts = text.replace("\n", " ").split("`")
    if len(parts) % 2 == 0:  # a backtick without its fellow
        parts = ["\\`".join(parts)]
    for place in range(0, len(parts), 2):
        parts[place] = re.sub(r"([*\[\]<~$]|(?<!\w)_|_(?!\w))", r"\\\1", parts[place])
    return "`".join(parts)


def _code(text: str) -> str:
    return "`" + text.replace("`", "'").replace("\n", " ") + "`"


def paper(text: str) -> str:
    """A card's paper with each title linked to its arXiv page; as it stands where it names no id."""
    words, end = [], 0
    for found in _ARXIV.finditer(text):
        title = text[end : found.start()].strip(" ;,")
        words.append(f"[{_plain(title or found[0])}](https://arxiv.org/abs/{found[1]})")
        end = found.end()
    rest = text[end:].strip(" ;,")
    return "; ".join([*words, _plain(rest)] if rest else words)


def _result(measured: Measured, key: str | None, link: str, notes: Notes) -> str:
    """'**better** than adamw: −0.051 nats (95 %: −0.07 to −0.03), 5 pairs at 3m 00s each'."""
    one, verdict = measured.comparison, measured.verdict
    rival = measured.base[key][2] if key in measured.base else one.base
    word = {"better": "**better** than", "worse": "**worse** than"}.get(one.verdict, f"**{one.verdict}** to")
    word = (
        word.replace("comparable** to", "comparable** with")
        .replace("shown** to", "shown** from")
        .replace("pairs** to", "pairs** against")
    )
    numbers = "" if one.difference is None else f": {signed(one.difference)} nats"
    if one.difference is not None and one.ends:
        numbers += f" ({confidence(one.confidence or verdict.confidence)}: {interval(one)})"
    pairs = f"{one.pairs} pair{'s' * (one.pairs != 1)} at {quantities.amount(verdict.unit, verdict.amount)}"
    others = [f"{place} = {slot[2]}" for place, slot in measured.new.items() if place != key]
    others += [f"{place} = absent" for place in measured.base if place not in measured.new]
    beside = ", ".join([*others, *measured.changed])
    beside = f", with {_code(beside)}" if beside else ""
    name = measured.new[key][2] if key else one.candidate
    arm = "" if one.candidate == name else f"as {_code(one.candidate)}: "
    told = notes.arms.get(measured.folder, {}).get(one.candidate, "")
    note = f"; note: {_plain(told)}" if told else ""
    return f"{arm}[{word} {_plain(rival)}]({link}/{measured.folder}/){numbers}, {pairs}{beside}{note}"


def _of(card: Card, evidence: Sequence[Measured], link: str, notes: Notes) -> list[str]:
    """What was measured of a method, a line for each comparison; none where nothing was."""
    slot = (card.engine, card.kind, card.name)
    lines = [_result(one, key, link, notes) for one in evidence for key, new in one.new.items() if new == slot]
    lines += [
        f"{_plain(one.said)} ([figures]({link}/{one.evidence}))"
        for one in notes.findings
        if (one.engine, one.kind, one.name) == slot
    ]
    bases = dict.fromkeys(one.folder for one in evidence if slot in one.base.values())
    if bases:
        lines.append("the base of " + ", ".join(f"[{_plain(name)}]({link}/{name}/)" for name in bases))
    return lines


def _entry(card: Card, found: Sequence[str]) -> str:
    """A method as a heading and a list. found: what was measured of it."""
    lines = [f"### {_code(card.name)}", ""]
    if card.paper:
        lines.append(f"- source: {paper(card.paper)}")
    lines += [f"- claim: {_plain(card.claim)}", f"- cost: {_plain(card.cost)}"]
    if len(found) > 1:
        lines += ["- measured:", *(f"    - {one}" for one in found)]
    else:
        lines.append(f"- measured: {found[0]}" if found else "- not measured yet")
    return "\n".join([*lines, ""])


_OPENING = """\
# Methods

Every method, engine by engine: what its source claims, what it costs, and what was measured of it here. Effects are
held-out loss in nats per token, less that of the base, so below zero is better; each comes with its interval, over
seeds that were paired, at the budget that every run had. The link leads to the arms, the runs and the machine: what
paid at that scale need not pay at another. 'No difference shown' says that these runs could not tell the two apart.

Written by `python -m shoestring.report.methods_page` from the cards and the evidence; not to be edited by hand.
"""


def methods_page(cards: Sequence[Card], evidence: Path, link: str = "../evidence") -> str:
    """The page of methods as Markdown; the same cards and evidence always give the same text.

    evidence: the folder of comparison folders. link: where that folder lies as seen from the page.
    Raises: UsageError when `evidence` is no folder; ShoestringError when one of its files is missing or damaged.
    """
    measured = read_evidence(evidence, cards)
    notes = read_notes(evidence, measured, cards)
    parts, table = list[str](), ["| kind | methods | measured |", "| --- | --- | --- |"]
    for (engine, kind), group in groupby(cards, key=lambda card: (card.engine, card.kind)):
        title = f"{engine}{f': {kind}' if kind else ''}"
        found = [(card, _of(card, measured, link, notes)) for card in group]
        anchor = re.sub(r"[^a-z0-9_ -]", "", title.lower()).replace(" ", "-")
        table.append(f"| [{title}](#{anchor}) | {len(found)} | {sum(bool(lines) for _, lines in found)} |")
        parts += [f"## {title}\n", *(_entry(card, lines) for card, lines in found)]
    parts = [_OPENING, *table, "", *parts]
    rest = [one for one in measured if not one.new]
    if rest:
        parts.append("## Settings\n\nComparisons of the same methods, set differently.\n")
        parts += [f"- {_code(one.comparison.candidate)}: {_result(one, None, link, notes)}" for one in rest]
        parts.append("")
    return "\n".join(parts)


def main(words: Sequence[str] | None = None) -> int:
    """Write the page. Returns the exit status; a failure is one line on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m shoestring.report.methods_page", description="Write docs/methods.md."
    )
    parser.add_argument("--evidence", type=Path, default=Path("evidence"), help="the folder of comparison folders")
    parser.add_argument("--out", type=Path, default=Path("docs/methods.md"), help="the page to write")
    found = parser.parse_args(words)
    link = Path(os.path.relpath(found.evidence, found.out.parent)).as_posix()
    try:
        page = methods_page(methods(), found.evidence, link)
        atomic.write_text(found.out, page)
    except ShoestringError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"error: {found.out} cannot be written: {error.strerror}", file=sys.stderr)
        return ShoestringError.exit_status
    print(found.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
